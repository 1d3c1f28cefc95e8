"""A TIFF's first page, reduced to the tags that make its pixels.

Enters: the bytes of a TIFF or BigTIFF file. Leaves: the same file with its first directory rewritten in place. TIFF
tags hold any number of values anywhere in the file, and pages may form a loop; what a decoder does not see cannot
cost anything.
"""

from __future__ import annotations

import struct
from typing import Literal

from tresnet.picture_file import ContainerError, PictureFile

_MAX_ENTRIES = 4096
_TYPE_BYTES = {1: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}  # BYTE, SHORT, LONG, RATIONAL, UNDEFINED, LONG8
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _STRIP_SIZES, _COLOURS = 273, 274, 279, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES, _JPEG_TABLES = 322, 323, 324, 325, 347
_MAX_VALUES = {
    # fill order, samples, rows a strip, planes, fax options, predictor, extra samples, sample format, YCbCr's four
    **dict.fromkeys((266, 277, 278, 284, 292, 293, 317, 338, 339, 529, 530, 531, 532), 16),
    **dict.fromkeys((_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC), 16),
    **dict.fromkeys((_ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT), 1),
    **dict.fromkeys((_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES), 100_000),
    _COLOURS: 3 * 2**16,
    _JPEG_TABLES: 2**16,
}
"""The tags that make pixels, and how many values each may have."""
# none, fax (three kinds), LZW, JPEG, deflate (two numbers), PackBits
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)


def read_tiff(data: bytes) -> PictureFile:
    """The first page alone, with the tags that make pixels; the directory is rewritten in its place."""
    order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
    is_big = data[2 if order == "<" else 3] == 43
    count_format, entry_format, offset_format = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHL4s", "L")
    entry_bytes = struct.calcsize(order + entry_format)
    patched = bytearray(data)
    values: dict[int, int] = {}  # each tag's first value
    try:
        (directory,) = struct.unpack_from(order + offset_format, data, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + count_format, data, directory)
        first = place = directory + struct.calcsize(order + count_format)
        for number in range(min(count, _MAX_ENTRIES)):
            entry = data[first + number * entry_bytes : first + (number + 1) * entry_bytes]
            tag, kind, length, inline = struct.unpack(order + entry_format, entry)
            limit = _MAX_VALUES.get(tag)
            size = _TYPE_BYTES.get(kind)
            if limit is None or size is None or tag in values:
                continue
            if not 1 <= length <= limit:
                raise ContainerError(f"the picture is damaged: a TIFF tag ({tag}) with {length} values")
            start = struct.unpack(order + offset_format, inline)[0] if length * size > len(inline) else None
            value = inline[:size] if start is None else data[start : start + size]
            values[tag] = int.from_bytes(value, "little" if order == "<" else "big")
            if tag != _ORIENTATION:
                patched[place : place + entry_bytes] = entry
                place += entry_bytes
        kept = (place - first) // entry_bytes
        struct.pack_into(order + count_format, patched, directory, kept)
        struct.pack_into(order + offset_format, patched, place, 0)  # no further page
    except (struct.error, IndexError, OverflowError) as error:
        raise ContainerError("the picture is damaged or cut short: a TIFF without a whole directory") from error
    _check(values)
    orientation = values.get(_ORIENTATION, 1)
    tile_pixels = values.get(_TILE_WIDTH, 0) * values.get(_TILE_HEIGHT, 0)
    return PictureFile("TIFF", bytes(patched), orientation if 1 <= orientation <= 8 else 1, tile_pixels)


def _check(values: dict[int, int]) -> None:
    compression, bits = values.get(_COMPRESSION, 1), values.get(_BITS, 1)
    if compression not in _COMPRESSIONS:
        raise ContainerError(f"the picture is a TIFF with compression {compression}, which is not accepted")
    if bits not in (1, 2, 4, 8, 16) or (bits == 16 and values.get(_PHOTOMETRIC) == 0):
        raise ContainerError(f"the picture is a TIFF with {bits} bits a sample, of a kind that is not accepted")
