"""Saved configs of older releases, lifted to the present form.

`MIGRATIONS[n]` lifts a saved config of format n to format n + 1; a config saved before
there was a number has format 0. Whoever renames a class, or adds a field whose default
differs from what older releases did, adds an entry here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Migration:
    """What changed from one format to the next.

    Attributes:
        classes: {old `cls`: new `cls`}.
        knobs: {new top-level key: the value that means what was done before}.
        fields: {`cls`: {new field: the value that means what was done before}}; only
            needed where the field's default means something else.
        renamed: {`cls`: {old field: new field}}.
        removed: {`cls`: {old field: what to use instead}}.
    """

    classes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    removed: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        classes={
            f"attn_jax.models.hopfield:{name}": f"attn_jax.models.bags:{name}"
            for name in (
                *("BagClassifier", "FeatureEncoder"),
                *("ImageEncoder", "MeanPooling"),
            )
        },
        fields={
            # Photographs were read as they are stored.
            "attn_jax.tasks.bags:Bags": {"exif_rotation": False},
            "attn_jax.tasks.classify:Classify": {"exif_rotation": False},
            "attn_jax.tasks.masked_patches:MaskedPatches": {"exif_rotation": False},
            "attn_jax.tasks.probe:Probe": {"exif_rotation": False},
            # The split went by file names, and some files were not read.
            "attn_jax.tasks.masked_lm:MaskedLM": {"corpus_version": 1},
        },
    ),
)


def current_format() -> int:
    """The format of configs that this release saves."""
    return len(MIGRATIONS)


def migrate(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a saved config in the present format.

    Raises:
        ValueError: the config is of a newer release, or sets a removed field.
    """
    number = saved.get("format", 0)
    if type(number) is not int or number < 0:
        raise ValueError(f"config.format={number!r} must be a number of 0 or more.")
    if number > current_format():
        raise ValueError(
            f"config.format={number} was saved by a newer release of attn_jax, which "
            f"reads up to {current_format()} here; update attn_jax."
        )
    config = dict(saved)
    for migration in MIGRATIONS[number:]:
        config = {**migration.knobs, **config}
        training = config.get("task")
        inherited = training.get("cls") if isinstance(training, Mapping) else None
        config = {
            key: _lift(value, migration, "config." + key, inherited)
            for key, value in config.items()
        }
    return {
        "format": current_format(),
        **{k: config[k] for k in config if k != "format"},
    }


def find_successor(cls: str) -> str | None:
    """The present name of a class that has moved."""
    for migration in MIGRATIONS:
        cls_now = migration.classes.get(cls)
        if cls_now is not None:
            return find_successor(cls_now) or cls_now
    return None


def younger_fields(cls: Any) -> set[str]:
    """Fields of a class whose default is not what older releases did."""
    return {
        field for migration in MIGRATIONS for field in migration.fields.get(cls, {})
    }


def explain_removed(cls: str, field: str) -> str | None:
    """What to use instead of a field that older releases had."""
    for migration in reversed(MIGRATIONS):
        if field in migration.renamed.get(cls, {}):
            return f"it is called {migration.renamed[cls][field]!r} now."
        if field in migration.removed.get(cls, {}):
            return migration.removed[cls][field]
    return None


def _lift(value: Any, migration: Migration, where: str, inherited: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_lift(item, migration, where, inherited) for item in value]
    if not isinstance(value, Mapping):
        return value
    section = {
        key: _lift(item, migration, f"{where}.{key}", inherited)
        for key, item in value.items()
    }
    if isinstance(section.get("cls"), str):
        section["cls"] = migration.classes.get(section["cls"], section["cls"])
        section = {
            **section,
            **{
                key: default
                for key, default in migration.fields.get(section["cls"], {}).items()
                if key not in section
            },
        }
    # An evaluation's task without a class holds only what differs from the training task.
    overrides = where.startswith("config.evals.") and where.endswith(".task")
    cls = section.get("cls", inherited if overrides else None)
    if not isinstance(cls, str):
        return section
    cls = migration.classes.get(cls, cls)
    for old, successor in migration.removed.get(cls, {}).items():
        if old in section:
            raise ValueError(f"{where}.{old} is no longer a field; {successor}")
    new_names = migration.renamed.get(cls, {})
    return {new_names.get(key, key): item for key, item in section.items()}
