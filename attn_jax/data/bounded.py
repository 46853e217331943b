"""Reads untrusted files: regular files only, and never more bytes than expected.

The size of a compressed file does not bound that of its content: a zip member of a few
kilobytes may promise, or hide, terabytes.
"""

import math
import os
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

MAX_IMAGE_BYTES = 2**28  # of one encoded image; 89 million pixels of BMP fit
FREE_BYTES = 2**29  # decompressed size up to which any ratio is accepted
MAX_RATIO = 100  # above FREE_BYTES; real arrays compress at most 10 times, a bomb 1,000


def printable(name: object, most: int = 300) -> str:
    """Formats a name for a message: on one line, encodable, at most `most` characters."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def join_names(names: Sequence[str], most: int = 8) -> str:
    """Joins the first names by commas, and adds the number of all if some are left off."""
    shown = ", ".join(names[:most])
    return printable(shown) + (f", ... ({len(names):,})" if len(names) > most else "")


def check_regular(path: str | os.PathLike[str]) -> int:
    """Returns the size in bytes of a regular file; links are followed.

    Raises:
        ValueError: the path is a folder, or a pipe, socket or device, whose reading may
            block or never end.
        OSError: the file does not exist.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            f"{printable(path)} is not a regular file (a folder, pipe, socket or device). "
            "Replace or remove it."
        )
    return status.st_size


def read_image_file(path: pathlib.Path) -> bytes:
    """Reads an encoded image.

    Raises:
        ValueError: the path is no regular file, or the file is larger than any image that
            can be decoded.
    """
    check_image_bytes(check_regular(path), path)
    return path.read_bytes()


def check_image_bytes(size: int, name: object) -> None:
    """Raises ValueError if an encoded image is too large to be read."""
    if size > MAX_IMAGE_BYTES:
        raise ValueError(
            f"{printable(name)} has {size:,} bytes; an encoded image may have at "
            f"most {MAX_IMAGE_BYTES:,}. Replace or remove it."
        )


def check_expansion(packed: int, size: int, name: object) -> None:
    """Raises ValueError if `packed` bytes would grow to implausibly many, `size`."""
    if size > max(FREE_BYTES, MAX_RATIO * packed):
        raise ValueError(
            f"{printable(name)} would grow from {packed:,} to {size:,} bytes when unpacked, more than "
            f"{MAX_RATIO} times: probably a decompression bomb. Unpack it yourself if you "
            "trust it."
        )


def inflate(data: bytes, size: int, *, wbits: int = -15) -> bytes | None:
    """Decompresses `data`; returns None unless the result has exactly `size` bytes.

    Args:
        wbits: of `zlib.decompressobj`: -15 for a zip member, 31 for gzip.
    """
    unpack = zlib.decompressobj(wbits=wbits)
    try:
        found = unpack.decompress(data, size + 1)
    except zlib.error:
        return None
    return found if len(found) == size and unpack.eof else None


def read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Reads an array of an .npz; its header is checked before memory is allocated.

    Raises:
        ValueError: the member is neither stored nor deflated; its header is of an unknown
            version, or promises another number of bytes than the member has; the array
            holds Python objects.
    """
    name = printable(member.filename, 120)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is neither stored nor deflated")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"{name} has a header of the unknown version {version}")
        stored = member.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    promised = math.prod(shape) * dtype.itemsize
    if promised != stored:
        raise ValueError(
            f"the header of {name} promises {promised:,} bytes, but {stored:,} are there"
        )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
