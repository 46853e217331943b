"""CRC-32C (Castagnoli) of large arrays, computed in many lanes at once by NumPy."""

import functools

import numpy as np
from jaxtyping import UInt8, UInt32

POLYNOMIAL = 0x82F63B78  # reflected
SHORTEST_LANE = 64  # bytes
MASK_DELTA = 0xA282EAD8  # of the stored form, RFC 3720's CRC rotated and shifted


def make_table() -> UInt32[np.ndarray, " 256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


TABLE = make_table()


def compute_masked_crc(data: UInt8[np.ndarray, " N"]) -> int:
    """The CRC of the bytes as LevelDB and TensorFlow store it."""
    crc = compute_crc(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def compute_crc(data: UInt8[np.ndarray, " N"]) -> int:
    """The CRC of the bytes.

    A CRC is linear: that of two parts is the first one's, shifted by the length of the second,
    plus the second one's. So lanes of equal length are computed side by side and then joined;
    there are about as many as each has bytes.
    """
    length = max(SHORTEST_LANE, 1 << (len(data).bit_length() // 2))
    lanes = len(data) // length
    crc = 0xFFFFFFFF
    if lanes:
        columns = data[: lanes * length].reshape(lanes, length).T
        state = np.zeros(lanes, np.uint32)
        for column in np.ascontiguousarray(columns):
            state = TABLE[(state ^ column) & 0xFF] ^ state >> 8
        shift = make_shift(length)
        for lane in state.tolist():
            crc = apply_shift(shift, crc) ^ lane
    for byte in data[lanes * length :].tolist():
        crc = int(TABLE[(crc ^ byte) & 0xFF]) ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def make_shift(length: int) -> list[list[int]]:
    """Tables of what `length` zero bytes make of each of the four bytes of a CRC."""
    state = (
        np.arange(256, dtype=np.uint32) << 8 * np.arange(4, dtype=np.uint32)[:, None]
    )
    for _ in range(length):
        state = TABLE[state & 0xFF] ^ state >> 8
    return state.tolist()


def apply_shift(shift: list[list[int]], crc: int) -> int:
    first, second, third, fourth = shift
    return (
        first[crc & 0xFF]
        ^ second[crc >> 8 & 0xFF]
        ^ third[crc >> 16 & 0xFF]
        ^ fourth[crc >> 24]
    )
