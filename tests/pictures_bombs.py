"""Small files that would cost a decoder much: each must be refused or served within little time and memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from picture_files import bmp, jpeg_segment, png, png_chunk, tiff
from pictures_corpus import SIDE, photo, saved, tiff_tags
from PIL import Image

MEGABYTES = 8 * 2**20
"""Size of the padding in those files whose cost grows with their own size."""


def _jpegs() -> Iterator[tuple[str, bytes]]:
    whole = saved(photo(), "JPEG")
    yield "jpeg-million-exif-segments", whole[:2] + jpeg_segment(0xE1, b"Exif\0\0x") * 700_000 + whole[2:]
    yield "jpeg-megabytes-of-exif", whole[:2] + _exif_segments(_exif_of_many_rationals(0x0112, 0x011A)) + whole[2:]
    yield "jpeg-megabytes-of-junk", whole[:20] + bytes(MEGABYTES) + whole[20:]
    yield "jpeg-megabytes-of-fill", whole[:20] + b"\xff" * MEGABYTES + whole[20:]
    yield "jpeg-megabytes-of-fill-that-end-in-zero", whole[:20] + b"\xff" * MEGABYTES + b"\0" + whole[20:]
    yield "jpeg-thousands-of-frames", whole[:2] + jpeg_segment(0xC2, b"") * 4000 + bytes(MEGABYTES)
    frame_of_one = jpeg_segment(0xC2, b"\x08\0\x10\0\x10\x01\x01\x11\0")
    yield "jpeg-million-tables-after-the-frame", whole[:2] + frame_of_one + jpeg_segment(0xDD, b"\0\0") * 700_000
    yield "jpeg-million-tables", whole[:20] + jpeg_segment(0xDD, b"\0\0") * 700_000 + whole[20:]
    yield "jpeg-mpf-of-overlapping-tags", whole[:2] + jpeg_segment(0xE2, b"MPF\0" + _overlapping(65_000)) + whole[2:]
    for name, size in (("huge", 65_500), ("zero", 0)):
        yield f"jpeg-{name}", _resized_jpeg(whole, size)
        frame = whole.index(b"\xff\xc0")
        second = _resized_jpeg(whole, size)[frame : frame + 19]
        yield f"jpeg-second-frame-{name}", whole[:frame] + second + whole[frame:]
        yield f"jpeg-second-frame-{name}-after", whole[: frame + 19] + second + whole[frame + 19 :]
    yield "jpeg-many-scans", _many_scans(4000)


def _resized_jpeg(data: bytes, size: int) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", size, size) + data[place + 4 :]


def _many_scans(scans: int) -> bytes:
    """7,000 pixels square, where every further scan is some bytes and a pass over a million blocks."""
    data = saved(Image.new("L", (7000, 7000), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def _exif_segments(block: bytes) -> bytes:
    return b"".join(
        jpeg_segment(0xE1, b"Exif\0\0" + block[place : place + 65_000]) for place in range(0, len(block), 65_000)
    )


def _exif_of_many_rationals(*tags: int) -> bytes:
    """Tags of a million fractions each."""
    numbers = [1, 3] * (MEGABYTES // 8)
    return tiff([(tag, "R", numbers) for tag in tags])


def _overlapping(length: int) -> bytes:
    """As many tags as fit, each of which claims nearly all of the block."""
    count = min(60_000, (length - 14) // 12)
    entries = b"".join(struct.pack("<HHLL", 1000 + n, 3, (length - 100) // 2, 0) for n in range(count))
    return (b"II*\0" + struct.pack("<LH", 8, count) + entries).ljust(length, b"\0")


def _pngs() -> Iterator[tuple[str, bytes]]:
    whole = png(photo(), 2)
    start = whole.index(b"IDAT") - 4
    yield "png-million-chunks", whole[:start] + png_chunk(b"teXt", b"") * 700_000 + whole[start:]
    yield "png-million-critical-chunks", whole[:start] + png_chunk(b"TEXT", b"") * 700_000 + whole[start:]
    yield "png-million-idat", whole[:start] + png_chunk(b"IDAT", b"") * 190_000 + whole[start:]
    yield "png-exif-of-overlapping-tags", whole[:start] + png_chunk(b"eXIf", _overlapping(MEGABYTES)) + whole[start:]
    huge = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    yield "png-huge", whole[:8] + png_chunk(b"IHDR", huge) + whole[start:]
    yield "png-second-header-huge", whole[:start] + png_chunk(b"IHDR", huge) + whole[start:]
    yield "png-second-header-huge-after", whole[:-12] + png_chunk(b"IHDR", huge) + whole[-12:]
    bomb = zlib.compress(bytes(60_000_000), 9)
    dot = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    yield "png-pixel-bomb", whole[:8] + png_chunk(b"IHDR", dot) + png_chunk(b"IDAT", bomb) + png_chunk(b"IEND", b"")
    yield "png-length-beyond", whole[:start] + b"\xff\xff\xff\xffiTXt" + whole[start:]


def _tiffs() -> Iterator[tuple[str, bytes]]:
    def grey(**replaced: tuple[str, list[int]]) -> bytes:
        tags = {tag: (code, values) for tag, code, values in tiff_tags(bits=8, photometric=1)}
        tags |= {int(tag[1:]): value for tag, value in replaced.items()}
        return tiff([(tag, *tags[tag]) for tag in sorted(tags)], bytes(SIDE * SIDE))

    many = MEGABYTES // 4
    yield "tiff-million-strips", grey(t273=("L", [8] * many), t278=("L", [1]), t279=("L", [1] * many))
    yield "tiff-100000-strips", grey(t273=("L", [8] * 100_000), t278=("L", [1]), t279=("L", [SIDE] * 100_000))
    yield "tiff-million-bits", grey(t258=("H", [8] * many))
    yield "tiff-million-samples", grey(t277=("L", [many]))
    yield "tiff-million-rationals", grey(t282=("R", [1, 3] * (many // 2)), t283=("R", [1, 3] * (many // 2)))
    yield "tiff-huge", grey(t256=("L", [2**31]), t257=("L", [2**31]))
    yield "tiff-huge-rows-per-strip", grey(t278=("L", [2**32 - 1]))
    yield "tiff-zero-rows-per-strip", grey(t278=("L", [0]))
    yield "tiff-negative-bytes", grey(t279=("L", [2**32 - 1]))
    for compression in (1, 5, 8):
        pixels = zlib.compress(bytes(60_000_000), 9) if compression == 8 else bytes(1000)
        tags = [entry for entry in tiff_tags(bits=8, photometric=1) if entry[0] not in (259, 273, 278, 279)]
        tags += [
            (259, "H", [compression]), (322, "L", [2**15]), (323, "L", [2**15]), (324, "L", [8]),
            (325, "L", [len(pixels)]),
        ]  # fmt: skip
        yield f"tiff-huge-tile-{compression}", tiff(tags, pixels)
        tags = [entry for entry in tags if entry[0] < 322]
        tags += [(273, "L", [8]), (278, "L", [2**31 - 1]), (279, "L", [len(pixels)])]
        yield f"tiff-long-strip-{compression}", tiff(sorted(tags), pixels)
    loop = bytearray(grey())
    (directory,) = struct.unpack_from("<L", loop, 4)
    (count,) = struct.unpack_from("<H", loop, directory)
    struct.pack_into("<L", loop, directory + 2 + 12 * count, directory)
    yield "tiff-directory-loop", bytes(loop)
    for big in (False, True):
        start = struct.pack("<HHQ", 8, 0, 16) if big else struct.pack("<L", 8)
        yield f"tiff-many-entries-{big}", (b"II+\0" if big else b"II*\0") + start + b"\xff" * MEGABYTES
    yield "tiff-overlapping-tags", _overlapping(MEGABYTES)


def _others() -> Iterator[tuple[str, bytes]]:
    exif = _overlapping(MEGABYTES)
    lossless = saved(photo(), "WEBP", lossless=True)
    huge_canvas = b"VP8X" + struct.pack("<IB3x", 10, 0) + b"\xff\xff\xff\xfe\0\0"
    yield "webp-huge-canvas", _riff(huge_canvas + lossless[12:])
    canvas = b"VP8X" + struct.pack("<IB3x", 10, 8) + struct.pack("<I", SIDE - 1)[:3] * 2
    yield "webp-exif-of-overlapping-tags", _riff(canvas + lossless[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif)
    frame = b"ANMF" + struct.pack("<I", 16) + bytes(16)
    animated = b"VP8X" + struct.pack("<IB3x", 10, 2) + struct.pack("<I", SIDE - 1)[:3] * 2
    yield "webp-million-frames", _riff(animated + b"ANIM\6\0\0\0" + bytes(6) + frame * 300_000)
    yield "avif-exif-of-overlapping-tags", saved(photo(), "AVIF", exif=exif)
    yield "avif-exif-of-many-rationals", saved(photo(), "AVIF", exif=_exif_of_many_rationals(0x011A))
    flat = saved(Image.new("L", (4096, 4096)), "AVIF", speed=10, quality=10)
    ispe = flat.index(b"ispe") + 8
    for side in (1, 70_000):
        yield f"avif-says-{side}", flat[:ispe] + struct.pack(">II", side, side) + flat[ispe + 8 :]
    gif = saved(Image.fromarray(photo()).quantize(16), "GIF")
    start = gif.index(b",\0\0\0\0")
    yield "gif-megabytes-of-comments", gif[:start] + b"!\xfe" + b"\1c" * (MEGABYTES // 2) + b"\0" + gif[start:]
    yield "gif-megabytes-of-junk", gif[:start] + b"x" * MEGABYTES + gif[start:]
    yield "gif-million-extensions", gif[:start] + b"!\xf9\4\0\0\0\0\0" * 700_000 + gif[start:]
    yield "gif-huge-screen", gif[:6] + b"\xff" * 4 + gif[10:]
    yield "gif-frame-far-away", gif[: start + 1] + b"\xff" * 4 + gif[start + 5 :]
    palette = bytes(1024)
    deltas = b"\0\2\xff\xff" * 500_000
    yield "bmp-rle-deltas", bmp(deltas, 8000, 8000, 8, compression=1, tables=palette)
    runs = (b"\xff\x12" * 16 + b"\x10\x34\0\0") * 4096
    yield "bmp-rle-runs", bmp(runs, 4096, 4096, 4, compression=2, tables=palette[:64])
    yield "bmp-rle-wide", bmp(deltas, 64_000_000, 1, 8, compression=1, tables=palette)
    yield "bmp-huge", bmp(b"", 2**31 - 1, 2**31 - 1, 24)
    yield "bmp-huge-header", b"BM" + bytes(12) + b"\xff" * 4 + bytes(MEGABYTES)


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def bombs() -> Iterator[tuple[str, bytes]]:
    """Each bomb and its name; one at a time, for they are large."""
    for maker in (_jpegs, _pngs, _tiffs, _others):
        yield from maker()
