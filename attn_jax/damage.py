"""What a failed read of a checkpoint means: damage, removal, or trouble with the storage.

Only a damaged checkpoint may be moved aside. Trouble with the storage (no permission, an
I/O error, too many open files, no memory) does not mean that the content is bad: it ends
the run and changes nothing.
"""

import errno
import re
import zlib
from collections.abc import Iterator

from etils import epath

# What orbax, tensorstore and the parsers they call raise for lost or unparsable content.
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
    """A checkpoint that no longer exists: a run in progress keeps only some."""

    def __init__(self, step: int):
        self.step = step
        super().__init__(
            f"the checkpoint of step {step} was removed while it was read (by a run in "
            "progress, which keeps only some of them); name a newer step."
        )


def explain_failure(error: Exception, step: int, folder: epath.Path) -> Exception:
    """Converts the error of a failed read to Damaged, Removed or OSError.

    Everything that reads checkpoints relies on this decision.
    """
    if isinstance(error, Damaged | Removed):
        return error
    cause = find_trouble(error)
    if cause is None:
        # Orbax treats a folder that it may not list as empty, so check the files here.
        try:
            if not folder.exists():
                list(folder.parent.iterdir())
                return Removed(step)
            read_every_file(folder)
        except OSError as trouble:
            if trouble.errno not in LOST:
                cause = trouble
    if cause is None and any(isinstance(e, CONTENT) for e in iterate_causes(error)):
        return Damaged(step, shorten(list(iterate_causes(error))[-1]))
    return OSError(
        f"{folder} cannot be read: {shorten(cause or error)}. Nothing was changed: correct "
        "the cause and run the same command again."
    )


def find_trouble(error: Exception) -> BaseException | None:
    """The first of the chained errors that is about the storage, not the content."""
    for each in iterate_causes(error):
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


def iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of causes."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def read_every_file(folder: epath.Path) -> None:
    """Raises OSError if a file below a local folder cannot be opened and read."""
    if "://" in str(folder):
        return
    for file in folder.iterdir():
        if file.is_dir():
            read_every_file(file)
        else:
            with file.open("rb") as opened:
                opened.read(1)


def shorten(error: BaseException) -> str:
    """The first line of an error, without the details that tensorstore appends."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"out of memory: {text}"
    text = text.splitlines()[0].partition(" [tensorstore_spec")[0]
    if len(text) > 200:  # tensorstore names the cause last
        text = f"{text[:80]} ... {text[-115:]}"
    return re.sub(r"\s+", " ", text).rstrip(".")
