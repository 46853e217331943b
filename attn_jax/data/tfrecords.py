"""Reads TFRecord files and `tf.train.Example` without TensorFlow.

A record is its length (8 bytes), the checksum of the length, the bytes, and their checksum;
all numbers are little-endian. Source: tensorflow/core/lib/io/record_writer.h,
core/example/feature.proto.
"""

import gzip
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from attn_jax.crc32c import compute_masked_crc
from attn_jax.data import bounded
from attn_jax.protobuf import Damaged, parse_fields, parse_message, parse_varint

HEAD = struct.Struct("<QI")
MAX_BYTES = 2**26  # of a record; one of CLEVR with masks has 3 million


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a file, plain or gzipped, in order; checksums are checked.

    At any time memory holds one record, of at most 64 MiB, and the small buffer of gzip.

    Raises:
        ValueError: the file is cut short, or a record has changed; both name the record.
    """
    bounded.check_regular(path)
    with path.open("rb") as start:
        zipped = start.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        number = 0
        try:
            while head := file.read(HEAD.size):
                yield read_rest(file, head)
                number += 1
        except (Damaged, EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{bounded.printable(path)} is no whole TFRecord file: record {number:,} (the "
                f"first is 0) is damaged: {reason}. Fetch it again."
            ) from error


def read_rest(file: Any, head: bytes) -> bytes:
    """Reads the record that begins with `head`.

    Raises:
        Damaged: it is cut short, or a checksum is wrong.
    """
    if len(head) < HEAD.size:
        raise Damaged("the file ends within its length")
    length, crc = HEAD.unpack(head)
    if compute_masked_crc(np.frombuffer(head, np.uint8, 8)) != crc:
        raise Damaged("the checksum of its length is wrong")
    if length > MAX_BYTES:
        raise Damaged(f"it has {length:,} bytes, more than {MAX_BYTES:,}")
    data = file.read(length + 4)
    if len(data) < length + 4:
        raise Damaged(f"the file ends after {len(data):,} of its {length + 4:,} bytes")
    (crc,) = struct.unpack_from("<I", data, length)
    if compute_masked_crc(np.frombuffer(data, np.uint8, length)) != crc:
        raise Damaged("its checksum is wrong")
    return data[:length]


def parse_example(data: bytes) -> dict[str, np.ndarray]:
    """Parses a `tf.train.Example`: {name: uint8, float32 or int64 values, flat}.

    Texts of a list are joined, so an array stored as one text, and one stored as a text of one
    byte for each element, come out alike.

    Raises:
        Damaged: the bytes are no Example.
    """
    features = {}
    try:
        for _, part in parse_fields(parse_message(data).get(1, b"")):
            entry = parse_message(part)
            [(kind, values)] = parse_fields(entry.get(2, b"")) or [(0, b"")]
            features[entry[1].decode()] = parse_values(kind, values)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"it is no tf.train.Example ({error!r:.60})") from error
    return features


def parse_values(kind: int, data: bytes) -> np.ndarray:
    """Parses a BytesList (1), FloatList (2) or Int64List (3)."""
    if kind == 1:
        return parse_texts(data)
    if kind == 2:
        parts = [
            part if isinstance(part, bytes) else struct.pack("<I", part)
            for _, part in parse_fields(data)
        ]
        return np.frombuffer(b"".join(parts), "<f4")
    if kind == 3:
        return np.array(list(parse_integers(data)), np.int64)
    raise Damaged(f"a feature is of kind {kind}")


def parse_texts(data: bytes) -> np.ndarray:
    """The bytes of all texts of a BytesList, joined."""
    raw = np.frombuffer(data, np.uint8)
    if len(raw) % 3 == 0:  # millions of texts of one byte: field 1, length 1, the byte
        triples = raw.reshape(-1, 3)
        if (triples[:, :2] == (0x0A, 1)).all():
            return triples[:, 2]
    return np.frombuffer(b"".join(text for _, text in parse_fields(data)), np.uint8)


def parse_integers(data: bytes) -> Iterator[int]:
    for _, part in parse_fields(data):
        if isinstance(part, int):
            yield part
            continue
        at = 0
        while at < len(part):
            value, at = parse_varint(part, at)
            yield value - (value >> 63 << 64)
