"""A workdir as users write it: a local folder, with `~` or not, or a URL of a cloud."""

import os

from etils import epath


def resolve_folder(workdir: epath.PathLike) -> epath.Path:
    """The absolute path, or the URL; `~` is expanded, `file://` taken as local.

    Raises:
        ValueError: the path is empty, names no user's home, or needs a package that is
            not installed.
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
            raise ValueError(f"{text}: there is no such user's home; write it in full.")
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
    return folder  # `resolve` would make a local path of a URL
