"""Reads the fields of protocol buffers and of TensorFlow's records, without their libraries.

Source: protobuf.dev, encoding.
"""

from collections.abc import Iterator
from typing import Any


class Damaged(ValueError):
    """The bytes are not those of the format."""


def parse_message(message: bytes) -> dict[int, Any]:
    """Parses {field: last value} of a protocol buffer; nested messages stay bytes."""
    return dict(parse_fields(message))


def parse_repeated(message: bytes, field: int) -> list[bytes]:
    return [value for number, value in parse_fields(message) if number == field]


def parse_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(message):
        tag, at = parse_varint(message, at)
        kind = tag & 7
        value: Any
        if kind == 0:
            value, at = parse_varint(message, at)
        elif kind == 2:
            length, at = parse_varint(message, at)
            if at + length > len(message):
                raise Damaged("a message is cut short")
            value, at = message[at : at + length], at + length
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            if at + width > len(message):
                raise Damaged("a message is cut short")
            value = int.from_bytes(message[at : at + width], "little")
            at += width
        else:
            raise Damaged(f"a message has a field of kind {kind}")
        yield tag >> 3, value


def parse_varint(data: bytes, at: int) -> tuple[int, int]:
    """Parses (value, place after it) of a base-128 integer of at most 10 bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Damaged("an integer has more than 64 bits")
