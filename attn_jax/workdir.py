"""The files of a run beside its checkpoints.

DIR/config.json holds the resolved config, DIR/assets what the run learned from its
training data: class names, a vocabulary.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from attn_jax import config
from attn_jax.digests import digest_bytes


def save_config(workdir: epath.PathLike, settings: config.Section) -> None:
    """Writes DIR/config.json; by rename, so that a reader never sees half of it."""
    write(epath.Path(workdir) / "config.json", as_json(settings))


def load_config(workdir: epath.PathLike) -> dict[str, Any] | None:
    """The resolved config of a run, None where the folder holds no run yet.

    Raises:
        ValueError: the file is damaged, or another program's.
    """
    file = epath.Path(workdir) / "config.json"
    if not file.exists():
        return None
    try:
        settings = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged: {error}. Start again in a new --workdir."
        ) from error
    if not isinstance(settings, dict) or "task" not in settings:
        raise ValueError(f"{file} is no run's config.json; name a run's --workdir.")
    return settings


def save_assets(workdir: epath.PathLike, assets: Mapping[str, str]) -> None:
    """Writes DIR/assets, with digests; a resumed run must bring the same ones.

    Raises:
        ValueError: an asset of the run so far differs.
    """
    check_same_assets(workdir, assets)
    folder = epath.Path(workdir) / "assets"
    for name, text in assets.items():
        write(folder / name, text)
    digests = {n: digest_bytes(t.encode()) for n, t in assets.items()}
    write(folder / "digests.json", json.dumps(digests, indent=1))


def check_same_assets(workdir: epath.PathLike, assets: Mapping[str, str]) -> None:
    """Raises ValueError where an asset of the run is not what the data says now."""
    for name, text in assets.items():
        file = epath.Path(workdir) / "assets" / name
        if file.exists() and file.read_text() != text:
            raise ValueError(
                f"{file} differs from what the data says now: label names, a vocabulary or "
                "the like have changed (embedded text changes with the version of "
                "Python). Use the data of the first run, or start in a new --workdir."
            )


def check_assets(workdir: epath.PathLike) -> None:
    """Raises ValueError where a file of DIR/assets is not as it was written."""
    folder = epath.Path(workdir) / "assets"
    if not (folder / "digests.json").exists():
        return
    for name, digest in json.loads((folder / "digests.json").read_text()).items():
        file = folder / name
        if not file.exists() or digest_bytes(file.read_bytes()) != digest:
            raise ValueError(
                f"{file} is missing or has changed since it was written; bring back the "
                "original, predictions would be named wrongly."
            )


def evaluation_key(seed: int) -> jax.Array:
    """What evaluations that sample draw from: apart from every key of training."""
    return jax.random.fold_in(jax.random.key(seed), 0xE7A1)


def row_shapes(batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, list]:
    """{name: [shape without the batch dimension, dtype]}, as JSON."""
    return {name: [list(s.shape[1:]), str(s.dtype)] for name, s in batch.items()}


def as_json(settings: config.Section) -> str:
    return json.dumps(config.plain(settings), indent=1) + "\n"


def write(file: epath.Path, text: str) -> None:
    """Process 0 writes beside the target and renames."""
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(text)
        temporary.replace(file)
