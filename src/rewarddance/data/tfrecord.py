"""TFRecord files of `tf.train.Example`, read and written without TensorFlow.

A file is a sequence of (length as uint64, its checksum, content, its checksum), all little-endian. The content is a
protocol buffer: Example{features: 1}, Features{feature: 1, a map}, Feature{bytes_list: 1, float_list: 2,
int64_list: 3}.
Checksums are masked CRC-32C. Readers here check lengths, not checksums.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError

Value = bytes | list[Any]


def tfrecord_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(row number from 1, feature name -> value or list of values, or why the row cannot be read).

    A feature with one value gives the value; texts are decoded where they are UTF-8, and stay bytes otherwise.

    Raises:
        InputError: the file is not a TFRecord file, or is cut off.
    """
    with open(path, "rb") as file:
        number = 0
        while head := file.read(12):
            number += 1
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 1 << 62
            content = file.read(length) if length < 1 << 31 else b""
            if len(content) < length or len(file.read(4)) < 4:
                raise InputError(f"{path}: not a TFRecord file, or cut off in row {number}")
            try:
                yield number, _example(content)
            except (ValueError, IndexError, struct.error) as error:
                yield number, f"not a tf.train.Example ({error})"


def _example(content: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for _, features in _fields(content):
        for _, entry in _fields(_bytes(features)):
            pair = dict(_fields(_bytes(entry)))
            values = [v for kind, v in _fields(_bytes(pair[2])) for v in _values(kind, _bytes(v))] if 2 in pair else []
            row[_bytes(pair[1]).decode()] = values[0] if len(values) == 1 else values
    return row


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message was expected")
    return value


def _values(kind: int, content: bytes) -> list[Any]:
    """Values of a BytesList (1), FloatList (2) or Int64List (3); numbers may be packed or not."""
    made: list[Any] = []
    for _, value in _fields(content):
        if kind == 1:
            made.append(_text(_bytes(value)))
        elif kind == 2:
            packed = _bytes(value)
            made += struct.unpack(f"<{len(packed) // 4}f", packed)
        elif isinstance(value, int):
            made.append(_signed(value))
        else:
            place = 0
            while place < len(value):
                single, place = _varint(value, place)
                made.append(_signed(single))
    return made


def _text(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer message."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        wire = key & 7
        value: int | bytes
        if wire == 0:
            value, place = _varint(content, place)
        elif wire in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                length, place = _varint(content, place)
            if place + length > len(content):
                raise ValueError("a field is longer than its message")
            value, place = content[place : place + length], place + length
        else:
            raise ValueError(f"wire type {wire}")
        yield key >> 3, value


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def write_tfrecord(rows: Iterable[Mapping[str, str | bytes | float | int]], path: Path) -> None:
    """Write rows of single values, with checksums."""
    with open(path, "wb") as file:
        for row in rows:
            features = b"".join(_message(1, _message(1, k.encode()) + _message(2, _feature(v))) for k, v in row.items())
            content = _message(1, features)
            length = struct.pack("<Q", len(content))
            file.write(length + _masked_crc(length) + content + _masked_crc(content))


def _feature(value: str | bytes | float | int) -> bytes:
    if isinstance(value, float):
        return _message(2, _message(1, struct.pack("<f", value)))
    if isinstance(value, int):
        return _message(3, _message(1, _encoded(value % (1 << 64))))
    return _message(1, _message(1, value.encode() if isinstance(value, str) else value))


def _message(field: int, content: bytes) -> bytes:
    return _encoded(field << 3 | 2) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(parts + bytes([value]))


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def _masked_crc(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
