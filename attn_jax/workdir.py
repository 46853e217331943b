"""The files of a run other than its checkpoints, and the lock on its folder.

DIR/config.json holds the resolved config, DIR/assets what the run learned from its
training data, such as class names or a vocabulary.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import jax
from etils import epath

from attn_jax import agreement, config
from attn_jax.checkpoint_reader import CheckpointReader
from attn_jax.digests import digest_bytes
from attn_jax.folder import resolve_folder

LOCK = ".lock"
# Some network file systems do not support locks.
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


# --- one writer -----------------------------------------------------------------------


@contextlib.contextmanager
def lock(workdir: epath.PathLike, say: Callable[[str], None] = print) -> Iterator[str]:
    """Locks the folder for one run, and yields its absolute path or URL.

    The folder is created, and removed again if it stays empty.

    The system releases the lock when the process ends, however it ends. A cloud path is
    not locked. A collective: process 0 holds the lock for all.

    Args:
        say: called with a warning if the file system does not support locks.

    Raises:
        ValueError: another run holds the lock (the message names its process and machine),
            or the path is a file.
        OSError: the folder cannot be made or written.
    """
    folder = resolve_folder(workdir)
    made: list[pathlib.Path] = []
    file: IO[str] | None = None
    error: Exception | None = None
    if jax.process_index() == 0 and "://" not in str(folder):
        try:
            local = pathlib.Path(folder)
            if local.is_file():
                raise ValueError(f"{local} is a file; --workdir must name a folder.")
            made = [path for path in (local, *local.parents) if not path.exists()]
            local.mkdir(parents=True, exist_ok=True)
            file = acquire_lock(local / LOCK, say)
        except ValueError as caught:
            error = caught
        except OSError as caught:
            error = name_place(caught, folder)
    try:
        agreement.raise_together(error, f"process 0 cannot lock {folder}")
        yield str(folder)
    finally:
        if file is not None:
            pathlib.Path(file.name).unlink(missing_ok=True)
            file.close()
        for path in made:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


def acquire_lock(path: pathlib.Path, say: Callable[[str], None]) -> IO[str] | None:
    """The locked file; None if the file system does not support locks.

    Raises:
        ValueError: another process holds it.
    """
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                owner = file.read().strip() or "another process"
            raise ValueError(
                f"{path.parent} is in use by {owner}, which is training there. Wait for it, "
                "stop it, or use another --workdir."
            ) from None
        except OSError as error:
            file.close()
            if error.errno not in UNSUPPORTED:
                raise
            say(
                f"WARNING: {path.parent} cannot be locked ({error.strerror}); do not start "
                "a second run there"
            )
            return None
        # Its last owner may have removed the file after it was opened here.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()


# --- config ---------------------------------------------------------------------------


def save_config(workdir: epath.PathLike, settings: config.Section) -> None:
    """Writes DIR/config.json."""
    write_text(resolve_folder(workdir) / "config.json", format_config(settings))


def load_config(workdir: epath.PathLike) -> dict[str, Any] | None:
    """The saved config of a run in the current format; None if there is no file.

    Raises:
        ValueError: the file is damaged, or another program or a newer release wrote it.
    """
    file = resolve_folder(workdir) / "config.json"
    try:
        text = file.read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    return config.from_json(text, str(file))


def recover_config(
    workdir: epath.PathLike,
    checkpoints: CheckpointReader,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """`load_config`; if the file is damaged or missing, the newest checkpoint's config.

    Args:
        say: called with a warning if the checkpoint's config is used.

    Raises:
        ValueError: the file is damaged, and there is no checkpoint.
    """
    damaged = None
    try:
        settings = load_config(workdir)
    except ValueError as error:
        settings, damaged = None, error
    if settings is not None:
        return settings
    record = checkpoints.newest_record()
    if record is None:
        if damaged:
            raise damaged
        return None
    file = resolve_folder(workdir) / "config.json"
    say(
        f"WARNING: {file} is {'damaged' if damaged else 'missing'}; the config of the "
        f"checkpoint of step {record['step']} is used"
    )
    return config.migrate(record["config"])


def format_config(settings: config.Section) -> str:
    return json.dumps(config.to_plain(settings), indent=1) + "\n"


# --- assets ---------------------------------------------------------------------------


def save_assets(
    workdir: epath.PathLike, assets: Mapping[str, str], *, resumed: bool = True
) -> None:
    """Writes DIR/assets, with digests; those of a resumed run must not have changed.

    Raises:
        ValueError: an asset differs from that of the run so far.
    """
    if resumed:
        check_same_assets(workdir, assets)
    folder = resolve_folder(workdir) / "assets"
    for name, text in assets.items():
        write_text(folder / name, text)
    digests = {name: digest_bytes(text.encode()) for name, text in assets.items()}
    write_text(folder / "digests.json", json.dumps(digests, indent=1))


def load_assets(workdir: epath.PathLike) -> dict[str, str]:
    """{file name: text} of DIR/assets, verified by digest; {} if there are none.

    Raises:
        ValueError: a file is missing or has changed; names the file.
    """
    folder = resolve_folder(workdir) / "assets"
    index = folder / "digests.json"
    try:
        digests = json.loads(index.read_text())
    except FileNotFoundError:
        digests = {}
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(damaged_asset(index)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(damaged_asset(index)) from error
    if not isinstance(digests, dict) or any(
        name != pathlib.PurePath(name).name for name in digests
    ):
        raise ValueError(damaged_asset(index))
    assets = {}
    for name, digest in digests.items():
        data = (folder / name).read_bytes() if (folder / name).is_file() else None
        if data is None or digest_bytes(data) != digest:
            raise ValueError(damaged_asset(folder / name))
        assets[name] = data.decode()
    return assets


def damaged_asset(file: epath.Path) -> str:
    return (
        f"{file} is missing or has changed since it was written (or its entry in "
        "digests.json has); restore the original. Without it, predictions could get "
        "wrong names."
    )


def check_same_assets(workdir: epath.PathLike, assets: Mapping[str, str]) -> None:
    """Raises ValueError if an asset of the run differs from what the data gives now."""
    for name, text in assets.items():
        file = resolve_folder(workdir) / "assets" / name
        if file.exists() and not is_same_asset(file.read_bytes().decode(), text):
            raise ValueError(
                f"{file} differs from what the data gives now: label names or a vocabulary "
                "have changed (embedded text changes with the version of Python). Use the "
                "data that the run began with, or a new --workdir."
            )


def is_same_asset(old: str, new: str) -> bool:
    """Whether two assets agree apart from the data's path, which older releases wrote."""
    if old == new:
        return True
    try:
        contents = [json.loads(text) for text in (old, new)]
    except ValueError:
        return False
    first, second = (
        {k: v for k, v in content.items() if k != "data"}
        if isinstance(content, dict)
        else content
        for content in contents
    )
    return first == second


# --- what else a run tells of itself --------------------------------------------------


def describe_row(batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, list]:
    """{name: [shape without the batch dimension, dtype]}, as JSON values."""
    return {name: [list(s.shape[1:]), str(s.dtype)] for name, s in batch.items()}


def format_evaluate_command(
    workdir: epath.PathLike, *, best: bool = False, trust: Sequence[str] = ()
) -> str:
    """The shell command that evaluates a run, quoted so that it can be pasted.

    Args:
        best: evaluates the best checkpoint instead of the newest.
        trust: other packages whose classes the config names.
    """
    # Where no environment is active, "python" is another one or none.
    found = shutil.which("python") == sys.executable
    python = "python" if found or not sys.executable else sys.executable
    words = [python, "-m", "attn_jax", "evaluate", f"--workdir={workdir}"]
    words += ["--step=best"] if best else []
    return shlex.join([*words, *(f"--trust={package}" for package in trust)])


def write_text(file: epath.Path, text: str) -> None:
    """Process 0 writes a temporary file and renames it: readers never see half a file.

    Raises:
        OSError: on every process, if process 0 cannot write.
    """
    error = None
    try:
        if jax.process_index() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(file.name + ".tmp")
            temporary.write_bytes(text.encode())
            temporary.replace(file)
    except OSError as caught:
        error = name_place(caught, file)
    agreement.raise_together(error, f"process 0 cannot write {file}")


def name_place(error: OSError, place: epath.Path) -> OSError:
    """The error with the place, which Python leaves out where the disk is full."""
    if error.filename is not None:
        return error
    return OSError(
        error.errno,
        f"{place} cannot be written: {error.strerror}. Free space there, or use another "
        "--workdir.",
    )
