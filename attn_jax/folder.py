"""Paths as users write them: local, perhaps with `~`, the URL of a cloud, or hf:OWNER/NAME."""

import os
import pathlib

from etils import epath

from attn_jax import hub


def expand_path(path: epath.PathLike) -> epath.Path:
    """The path with `~` expanded; `file://` is taken as local, other URLs stay.

    `hf:OWNER/NAME` is the folder to which it was downloaded.

    Raises:
        ValueError: it names no user's home, or a URL that needs a package which is not
            installed; see also `hub.download`.
    """
    text = os.fspath(path)
    if text.startswith(hub.PREFIX):
        return epath.Path(hub.download(text))
    local = text.removeprefix("file://")
    if "://" not in local:
        return epath.Path(expand_local(local))
    scheme = local.partition("://")[0]
    try:
        folder = epath.Path(local)
        folder.exists()
    except KeyError:
        raise ValueError(
            f"{text}: {scheme}:// is not supported; use a local path, gs:// or s3://."
        ) from None
    except ImportError as error:
        raise ValueError(f"{text} needs a package: {error}.") from None
    return folder


def expand_local(path: epath.PathLike) -> pathlib.Path:
    """The path with `~` expanded, of files that must be local.

    Raises:
        ValueError: it names no user's home, or is a URL other than `file://`.
    """
    text = os.fspath(path)
    local = text.removeprefix("file://")
    if "://" in local:
        raise ValueError(
            f"{text} is a URL, but is read from a local disk only; copy or mount it."
        )
    try:
        return pathlib.Path(local).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{text}: there is no such user's home; write it in full."
        ) from None


def resolve_folder(workdir: epath.PathLike) -> epath.Path:
    """The absolute path, or the URL, of a workdir.

    Raises:
        ValueError: the path is empty, or one that `expand_path` refuses.
    """
    text = os.fspath(workdir)
    if not text.removeprefix("file://").strip():
        raise ValueError(
            f"workdir={text!r} is empty; name a folder such as runs/digits."
        )
    if text.startswith(hub.PREFIX):
        raise ValueError(f"{text} is a checkpoint on the Hub; a workdir is a folder.")
    folder = expand_path(workdir)
    # `resolve` would make a local path of a URL.
    return folder if "://" in str(folder) else folder.resolve()


def find_cache() -> pathlib.Path:
    """The folder of data prepared once: $XDG_CACHE_HOME/attn_jax, or ~/.cache/attn_jax."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "attn_jax"
