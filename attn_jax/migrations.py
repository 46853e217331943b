"""Migrates saved configs of older releases to the current format.

`MIGRATIONS[n]` converts a config from format n to format n + 1; a config without a number
has format 0. Renaming a class, or adding a field whose default differs from what older
releases did, needs an entry here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Migration:
    """What changed from one format to the next.

    Attributes:
        classes: {old `cls`: new `cls`}.
        knobs: {new top-level key: value with the old behavior}.
        fields: {`cls`: {new field: value with the old behavior}}; only needed if the
            field's default behaves differently.
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
            # The EXIF rotation of photographs was ignored.
            "attn_jax.tasks.bags:Bags": {"exif_rotation": False},
            "attn_jax.tasks.classify:Classify": {"exif_rotation": False},
            "attn_jax.tasks.masked_patches:MaskedPatches": {"exif_rotation": False},
            "attn_jax.tasks.probe:Probe": {"exif_rotation": False},
            # Documents were split by file name, and some files were not read.
            "attn_jax.tasks.masked_lm:MaskedLM": {"corpus_version": 1},
        },
    ),
    Migration(knobs={"recipe": ""}),  # it was not recorded
)


def current_format() -> int:
    """The format of configs that this release saves."""
    return len(MIGRATIONS)


def migrate(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a saved config in the current format.

    Raises:
        ValueError: a newer release saved the config, or it sets a removed field.
    """
    number = saved.get("format", 0)
    if type(number) is not int or number < 0:
        raise ValueError(f"config.format={number!r} must be a number of 0 or more.")
    if number > current_format():
        raise ValueError(
            f"config.format={number} was saved by a newer release of attn_jax; this one "
            f"reads up to {current_format()}. Update attn_jax."
        )
    config = dict(saved)
    for migration in MIGRATIONS[number:]:
        config = {**migration.knobs, **config}
        training = config.get("task")
        inherited = training.get("cls") if isinstance(training, Mapping) else None
        config = {
            key: _migrate_value(value, migration, "config." + key, inherited)
            for key, value in config.items()
        }
    return {
        "format": current_format(),
        **{k: config[k] for k in config if k != "format"},
    }


def find_successor(cls: str) -> str | None:
    """The current name of a class that has moved; None if it has not."""
    for migration in MIGRATIONS:
        cls_now = migration.classes.get(cls)
        if cls_now is not None:
            return find_successor(cls_now) or cls_now
    return None


def younger_fields(cls: Any) -> set[str]:
    """Fields of a class whose defaults differ from what older releases did."""
    return {
        field for migration in MIGRATIONS for field in migration.fields.get(cls, {})
    }


def explain_removed(cls: str, field: str) -> str | None:
    """What to use instead of a field of older releases; None if there was no such field."""
    for migration in reversed(MIGRATIONS):
        if field in migration.renamed.get(cls, {}):
            return f"it is called {migration.renamed[cls][field]!r} now."
        if field in migration.removed.get(cls, {}):
            return migration.removed[cls][field]
    return None


def _migrate_value(value: Any, migration: Migration, where: str, inherited: Any) -> Any:
    """A value of a config after one migration; `inherited` is the class of the task."""
    if isinstance(value, list | tuple):
        return [_migrate_value(item, migration, where, inherited) for item in value]
    if not isinstance(value, Mapping):
        return value
    section = {
        key: _migrate_value(item, migration, f"{where}.{key}", inherited)
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
