"""Reading files that a stranger made: regular files only, and never more than expected.

A file's size says little about its content's: a zip member of a few kilobytes may promise,
or hide, terabytes.
"""

import os
import pathlib
import stat
import zlib
from collections.abc import Sequence

MAX_IMAGE_BYTES = 2**28  # of one encoded image; 89 million pixels of BMP fit
FREE_BYTES = 2**29  # decompressed size up to which any ratio is accepted
MAX_RATIO = 100  # beyond: image arrays compress by less than 10, a bomb by 1,000


def printable(name: object, most: int = 300) -> str:
    """A name as it may stand in a message: on one line, encodable, not endless."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def join_names(names: Sequence[str], most: int = 8) -> str:
    """The first names, separated by commas, and how many there are if not all."""
    shown = ", ".join(names[:most])
    return printable(shown) + (f", ... ({len(names):,})" if len(names) > most else "")


def check_regular(path: str | os.PathLike[str]) -> int:
    """The size of a regular file, or of what a link leads to, in bytes.

    Raises:
        ValueError: it is a pipe, a socket or a device, which may block or never end.
        OSError: it does not exist.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            f"{printable(path)} is not a regular file (a folder, pipe, socket or device). "
            "Replace or remove it."
        )
    return status.st_size


def read_image_file(path: pathlib.Path) -> bytes:
    """The content of an encoded image.

    Raises:
        ValueError: no regular file, or larger than any image that can be decoded.
    """
    check_image_bytes(check_regular(path), path)
    return path.read_bytes()


def check_image_bytes(size: int, name: object) -> None:
    """Raises ValueError where an encoded image is too large to be read."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(
            f"{printable(name)} has {size:,} bytes; an encoded image may have {MAX_IMAGE_BYTES:,}. "
            "Replace or remove it."
        )


def check_expansion(packed: int, size: int, name: object) -> None:
    """Raises ValueError where `packed` bytes promise implausibly many after unpacking."""
    if size > max(FREE_BYTES, MAX_RATIO * packed):
        raise ValueError(
            f"{printable(name)} would grow from {packed:,} to {size:,} bytes when unpacked, more than "
            f"{MAX_RATIO} times: probably a decompression bomb. Unpack it yourself if you "
            "trust it."
        )


def inflate(data: bytes, size: int, *, wbits: int = -15) -> bytes | None:
    """Decompressed `data`, None unless this gives exactly `size` bytes.

    Args:
        wbits: of `zlib.decompressobj`: -15 for a zip member, 31 for gzip.
    """
    unpack = zlib.decompressobj(wbits=wbits)
    try:
        found = unpack.decompress(data, size + 1)
    except zlib.error:
        return None
    return found if len(found) == size and unpack.eof else None
