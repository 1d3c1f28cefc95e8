"""Writers of picture files that Pillow does not write, straight from the formats' definitions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row step, column step of each pass."""


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: np.ndarray,
    colour_type: int,
    bits: int = 8,
    *,
    interlaced: bool = False,
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """``samples``: ``[H, W]`` or ``[H, W, C]``. ``before`` and ``after``: further chunks around the pixels'."""
    height, width = samples.shape[:2]
    passes = [samples[y::down, x::right] for y, x, down, right in ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + _packed(row, bits) for part in passes if part.size for row in part)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))),
        *before, (b"IDAT", zlib.compress(rows, 1)), *after, (b"IEND", b""),
    ]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def _packed(row: np.ndarray, bits: int) -> bytes:
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    unpacked = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(unpacked.reshape(-1)).tobytes()


def bmp(pixels: bytes, width: int, height: int, bits: int, *, compression: int = 0, tables: bytes = b"") -> bytes:
    """``tables``: masks or palette. A negative ``height`` means that the first row is the top one."""
    start = 14 + 40 + len(tables)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, len(tables) // 4, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + tables + pixels


def bmp_rle8(indices: np.ndarray) -> bytes:
    """Runs of equal indices, bottom row first."""
    coded = bytearray()
    for row in indices[::-1]:
        starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
        for start, end in zip(starts, np.r_[starts[1:], len(row)], strict=True):
            for begin in range(start, end, 255):
                coded += bytes((min(255, end - begin), row[start]))
        coded += b"\0\0"
    return bytes(coded) + b"\0\1"


_TIFF_CODES = {"B": (1, "B"), "H": (3, "H"), "L": (4, "I"), "R": (5, "II"), "U": (7, "B"), "Q": (16, "Q")}


def tiff(
    tags: Sequence[tuple[int, str, Sequence[int]]], data: bytes = b"", *, order: str = "<", big: bool = False
) -> bytes:
    """One directory. ``data`` begins right after the header, at byte 8 (16 in a BigTIFF): strips lie there."""
    offset_code = "Q" if big else "I"
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    header += struct.pack(order + "HH", 8, 0) if big else b""
    data_start = len(header) + struct.calcsize("<" + offset_code)
    values = bytearray()
    entries = bytearray()
    room = 8 if big else 4
    for tag, code, numbers in tags:
        kind, letters = _TIFF_CODES[code]
        packed = struct.pack(f"{order}{len(numbers)}{letters[0]}", *numbers)
        entries += struct.pack(f"{order}HH{offset_code}", tag, kind, len(numbers) // len(letters))
        if len(packed) <= room:
            entries += packed.ljust(room, b"\0")
        else:
            entries += struct.pack(order + offset_code, data_start + len(data) + len(values))
            values += packed
    directory = data_start + len(data) + len(values)
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    end = struct.pack(order + offset_code, 0)
    return header + struct.pack(order + offset_code, directory) + data + bytes(values) + count + bytes(entries) + end


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_lossless(samples: np.ndarray) -> bytes:
    """``uint8 [H, W]`` by ITU-T T.81's lossless process (annex H): differences from the left, Huffman-coded."""
    height, width = samples.shape
    left = np.empty(samples.shape, int)
    left[:, 1:] = samples[:, :-1]
    left[1:, 0], left[0, 0] = samples[:-1, 0], 128
    bits = []
    for difference in (samples.astype(int) - left).ravel().tolist():
        size = abs(difference).bit_length()  # 0..8, which all have codes of four bits
        bits.append(f"{size:04b}")
        if size:
            bits.append(f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    table = jpeg_segment(0xC4, bytes((0, 0, 0, 0, 9, *bytes(12), *range(9))))
    frame = jpeg_segment(0xC3, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    return b"\xff\xd8" + frame + table + jpeg_segment(0xDA, b"\1\1\0\1\0\0") + data + b"\xff\xd9"
