"""Resolves the path of a workdir: a local folder, perhaps with `~`, or a cloud URL."""

import os

from etils import epath


def resolve_folder(workdir: epath.PathLike) -> epath.Path:
    """The absolute path or URL. `~` is expanded, and `file://` is local.

    Raises:
        ValueError: the path is empty, its `~user` does not exist, or its URL scheme is not
            supported or needs a package that is not installed.
    """
    text = os.fspath(workdir)
    local = text.removeprefix("file://")
    if not local.strip():
        raise ValueError(
            f"workdir={text!r} is empty; name a folder such as runs/digits."
        )
    if "://" not in local:
        folder = epath.Path(local).expanduser()
        if str(folder).startswith("~"):
            raise ValueError(
                f"{text}: this home directory is unknown; give the full path."
            )
        return folder.resolve()
    scheme = local.partition("://")[0]
    try:
        folder = epath.Path(local)
        folder.exists()
    except KeyError:
        raise ValueError(
            f"{text}: {scheme}:// is not supported; use a local folder, gs:// or s3://."
        ) from None
    except ImportError as error:
        raise ValueError(f"{text} needs a package: {error}.") from None
    return folder  # `resolve` would turn a URL into a local path
