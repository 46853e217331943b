"""What a failed read of a checkpoint means: damaged, removed, or storage in trouble.

Only damage may move a checkpoint aside. Trouble with the storage (no permission, an I/O
error, too many open files, no memory) says nothing about the content: it ends the run and
changes nothing.
"""

import errno
import re
import zlib
from collections.abc import Iterator

from etils import epath

# Content that is lost or does not parse. Orbax and tensorstore raise many types for it:
# whatever a parser of nonsense may raise.
CONTENT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    zlib.error,
    FileNotFoundError,
    IsADirectoryError,
)
LOST = (errno.ENOENT, errno.EISDIR)  # a file is gone, or something else is in its place
# Status codes that tensorstore and XLA put in front of a message.
TROUBLE = re.compile(
    "PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|UNAUTHENTICATED|DEADLINE_EXCEEDED"
    "|ABORTED|CANCELLED|INTERNAL|UNKNOWN"
)
OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class Damaged(ValueError):
    """A checkpoint that cannot be trusted: its content is lost or has changed."""

    def __init__(self, step: int, why: str):
        self.step, self.why = step, why
        super().__init__(f"the checkpoint of step {step} is damaged: {why}")


class Removed(ValueError):
    """A checkpoint that was there and is gone: a run in progress keeps only some."""

    def __init__(self, step: int):
        self.step = step
        super().__init__(
            f"the checkpoint of step {step} was removed while it was read (by a run in "
            "progress, which keeps only some of them); name a newer step."
        )


def explain_failure(error: Exception, step: int, folder: epath.Path) -> Exception:
    """Damaged, Removed or OSError: what a failed read of this checkpoint means.

    The one place that decides; everything that reads checkpoints asks here.
    """
    if isinstance(error, Damaged | Removed):
        return error
    cause = find_trouble(error)
    if cause is None:
        # Orbax takes a folder that it may not list for an empty one, so look again.
        try:
            if not folder.exists():
                list(folder.parent.iterdir())
                return Removed(step)
            read_every_file(folder)
        except OSError as trouble:
            if trouble.errno not in LOST:
                cause = trouble
    if cause is None and any(isinstance(e, CONTENT) for e in chain(error)):
        return Damaged(step, shorten(list(chain(error))[-1]))
    return OSError(
        f"{folder} cannot be read: {shorten(cause or error)}. Nothing was changed: correct "
        "the cause and run the same command again."
    )


def find_trouble(error: Exception) -> BaseException | None:
    """The first error of the chain that is about the storage, not about the content."""
    for each in chain(error):
        code = each.errno if isinstance(each, OSError) else None
        if found := OS_ERROR.search(str(each)):
            code = int(found[1])
        if code is not None:
            if code not in LOST:
                return each
        elif isinstance(each, MemoryError | ImportError):
            return each
        elif TROUBLE.match(str(each)):
            return each
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def read_every_file(folder: epath.Path) -> None:
    """Raises OSError where a file of a local folder cannot be opened and read."""
    if "://" in str(folder):
        return
    for file in folder.iterdir():
        if file.is_dir():
            read_every_file(file)
        else:
            with file.open("rb") as opened:
                opened.read(1)


def shorten(error: BaseException) -> str:
    """The first line of an error, without the pages that tensorstore appends."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"out of memory: {text}"
    text = text.splitlines()[0].partition(" [tensorstore_spec")[0]
    if len(text) > 200:  # tensorstore names the cause last
        text = f"{text[:80]} ... {text[-115:]}"
    return re.sub(r"\s+", " ", text).rstrip(".")
