"""Reads checkpoints of TensorFlow 1 (PREFIX.index, PREFIX.data-*), without TensorFlow.

The index is a sorted table of LevelDB: blocks of key-value pairs whose keys share prefixes, an
index of the blocks, and a footer. Each value is a protocol buffer with type, shape, file, place
and checksum of a tensor. The data files hold the raw little-endian numbers.

Source: tensorflow/core/util/tensor_bundle, core/lib/io/table_format.txt,
core/protobuf/tensor_bundle.proto.
"""

import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from attn_jax.convert.description import check_regular, shorten
from attn_jax.crc32c import compute_masked_crc
from attn_jax.protobuf import Damaged, parse_message, parse_repeated, parse_varint

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
MAX_INDEX_BYTES = 2**28  # BERT-large with optimizer slots has 60 kB
DTYPES: Mapping[int, Any] = {  # of tensorflow/core/framework/types.proto
    1: np.float32,
    2: np.float64,
    3: np.int32,
    9: np.int64,
    14: ml_dtypes.bfloat16,
    19: np.float16,
}


class Tensor(NamedTuple):
    """Where a tensor lies: bytes [offset, offset + size) of data file number `shard`."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def read_tensorflow1(prefix: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads {name: array} of a checkpoint, and checks every checksum.

    Args:
        prefix: such as bert_model.ckpt, which stands for bert_model.ckpt.index and the data.

    Raises:
        ValueError: a file is missing, cut short or damaged; a tensor holds no numbers.
    """
    tensors, shards = read_index(prefix)
    return {
        name: read_tensor(prefix, name, tensor, shards)
        for name, tensor in tensors.items()
    }


def read_index(prefix: pathlib.Path) -> tuple[dict[str, Tensor], int]:
    """Reads ({name: place of the tensor}, number of data files) of PREFIX.index.

    Raises:
        ValueError: the file is missing or damaged.
    """
    file = prefix.with_name(prefix.name + ".index")
    if not file.exists():
        raise ValueError(
            f"{prefix} lacks its index {file.name}; fetch it too, it lists the tensors."
        )
    if check_regular(file) > MAX_INDEX_BYTES:
        raise ValueError(f"{file} has more than {MAX_INDEX_BYTES:,} bytes.")
    try:
        entries = dict(read_table(file.read_bytes()))
        header = parse_message(entries.pop(b"", b""))
        if header.get(2, 0) != 0:
            raise Damaged("its numbers are big-endian")
        tensors = {key.decode(): parse_tensor(value) for key, value in entries.items()}
    except (Damaged, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is no whole index of a TensorFlow checkpoint: {shorten(error)}. Fetch it "
            "again."
        ) from error
    return tensors, int(header.get(1, 1))


def read_tensor(
    prefix: pathlib.Path, name: str, tensor: Tensor, shards: int
) -> np.ndarray:
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{prefix}: {shorten(name)} is of type {tensor.dtype}, which is no number that can "
            "be read."
        )
    file = prefix.with_name(f"{prefix.name}.data-{tensor.shard:05d}-of-{shards:05d}")
    if not file.exists():
        raise ValueError(f"{prefix} lacks {file.name}, which holds {shorten(name)}.")
    dtype = np.dtype(DTYPES[tensor.dtype])
    count = 1
    for length in tensor.shape:
        count *= length
    end = tensor.offset + tensor.size
    if min(tensor.shape, default=0) < 0 or count * dtype.itemsize != tensor.size:
        raise ValueError(
            f"{prefix}: {shorten(name)} has {tensor.size} bytes, which are not "
            f"{list(tensor.shape)} numbers of {dtype}. Fetch the index again."
        )
    if end > (there := check_regular(file)):
        raise ValueError(
            f"{file} is cut short: it has {there:,} bytes, and {shorten(name)} ends at "
            f"{end:,}. Fetch it again."
        )
    data = np.fromfile(file, np.uint8, tensor.size, offset=tensor.offset)
    if compute_masked_crc(data) != tensor.crc:
        raise ValueError(
            f"{file}: the checksum of {shorten(name)} is wrong, so its bytes have changed. "
            "Fetch it again."
        )
    return data.view(dtype.newbyteorder("<")).astype(dtype).reshape(tensor.shape)


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the pairs of a table of LevelDB."""
    if len(data) < FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise Damaged("its last bytes are not those of a table")
    footer = data[-FOOTER_BYTES:]
    _, place = parse_varint(footer, 0)  # of a block that is not used
    _, place = parse_varint(footer, place)
    for _, handle in read_block(data, footer, place):
        yield from read_block(data, handle, 0)


def read_block(data: bytes, handle: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the pairs of the block whose offset and size are two varints at `handle[at]`."""
    offset, at = parse_varint(handle, at)
    size, _ = parse_varint(handle, at)
    if offset + size + 5 > len(data):
        raise Damaged(f"a block ends at {offset + size + 5}, the file at {len(data)}")
    block = data[offset : offset + size]
    kind = data[offset + size]
    (crc,) = struct.unpack_from("<I", data, offset + size + 1)
    checked = np.frombuffer(data, np.uint8, size + 1, offset)
    if compute_masked_crc(checked) != crc:
        raise Damaged(f"the checksum of the block at {offset} is wrong")
    if kind != 0:
        raise Damaged("it is compressed, as TensorFlow's own never is")
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    end, at, key = size - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = parse_varint(block, at)
        fresh, at = parse_varint(block, at)
        length, at = parse_varint(block, at)
        if at + fresh + length > end or shared > len(key):
            raise Damaged(f"a pair reaches beyond the block at {offset}")
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


def parse_tensor(message: bytes) -> Tensor:
    """Parses a BundleEntryProto."""
    fields = parse_message(message)
    shape = []
    for dim in parse_repeated(fields.get(2, b""), 2):
        shape.append(int(parse_message(dim).get(1, 0)))
    if 7 in fields:
        raise Damaged("a tensor is stored in slices; save the checkpoint unpartitioned")
    return Tensor(
        dtype=fields.get(1, 0),
        shape=tuple(shape),
        shard=fields.get(3, 0),
        offset=fields.get(4, 0),
        size=fields.get(5, 0),
        crc=fields.get(6, 0),
    )
