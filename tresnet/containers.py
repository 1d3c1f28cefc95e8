"""What of a picture file its decoder gets to see: one format, and only what makes the first frame's pixels.

Enters: the bytes of a file. Leaves: :class:`PictureFile`, the same picture without metadata, comments, further frames
and pages, with its orientation read. Decoders build Python objects out of metadata, so that a few
megabytes of tags, text chunks or application segments can cost gigabytes or minutes; here they are skipped by length.
Sizes that a decoder acts on before it tells them (a WebP's canvas, a TIFF's tiles) are read here too.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Literal

from tresnet.picture_file import ContainerError, PictureFile
from tresnet.tiff import read_tiff

_MAX_JPEG_SEGMENTS = 4096
# Every scan of a progressive JPEG costs a pass over all of the picture. Encoders write about ten.
_MAX_JPEG_SCANS = 100
_MAX_JPEG_SCANNED_PIXELS = 1_280_000_000  # about a second; 20 scans of 64 megapixels
_MAX_PNG_CHUNKS = 200_000
_MAX_GIF_BLOCKS = 100_000
_MAX_RUN_LENGTH_BMP_PIXELS = 2**24  # Pillow decodes these in Python, some ten million pixels a second

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
_JPEG_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


def read_container(data: bytes) -> PictureFile:
    """Recognise the format by the first bytes, and reduce the file to its pixels.

    Raises:
        ContainerError: with a message for whoever sent the file.
    """
    for magic, read in _READERS:
        if magic.match(data):
            return read(data)
    raise ContainerError(
        "the bytes are not a picture that can be read, which is a whole file of JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
    )


def _orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """From the EXIF block, else from the XMP text; 1 (upright) if neither tells."""
    if exif is not None:
        block = exif.removeprefix(b"Exif\0\0")
        order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"
        start = int.from_bytes(block[4:8], order)
        count = int.from_bytes(block[start : start + 2], order)
        for place in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
            if int.from_bytes(block[place : place + 2], order) == 0x0112:
                size = 4 if int.from_bytes(block[place + 2 : place + 4], order) == 4 else 2  # LONG, else SHORT
                value = int.from_bytes(block[place + 8 : place + 8 + size], order)
                return value if 1 <= value <= 8 else 1
    found = _XMP_ORIENTATION.search(xmp) if xmp else None
    return int(found[1]) if found else 1


def _jpeg(data: bytes) -> PictureFile:
    """Without application segments and comments, but for JFIF's and Adobe's, which tell the colour space."""
    kept = [b"\xff\xd8"]
    exif = xmp = None
    has_frame = False
    place = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, place)  # what lies between segments is skipped, as decoders do
        if found is None:
            raise ContainerError("the picture is damaged or cut short: there is nothing after its JPEG header")
        marker, start = found[1][0], found.end() - 2
        if marker == 0xDA:
            return PictureFile("JPEG", b"".join((*kept, memoryview(data)[start:])), _orientation(exif, xmp))
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:  # these have no length
            place = found.end()
            continue
        place = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if place < start + 4:
            raise ContainerError("the picture is damaged or cut short: its JPEG header is broken")
        content = data[start + 4 : min(place, start + 64)]
        if marker == 0xE1:
            if exif is None and content.startswith(b"Exif\0\0"):
                exif = data[start + 4 : place]
            elif xmp is None and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = data[start + 4 : place]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or (marker, content[:5]) in ((0xE0, b"JFIF\0"), (0xEE, b"Adobe")):
            kept.append(data[start:place])
        if marker in _JPEG_FRAMES:
            if has_frame:
                raise ContainerError("the picture is damaged: a JPEG has one frame, and this has more")
            has_frame = True
        if marker in (0xC2, 0xC6, 0xCA, 0xCE):  # progressive
            height, width = struct.unpack_from(">HH", content.ljust(5), 1)
            _bound_scans(data, place, width * height)
    raise ContainerError(f"the picture has more than {_MAX_JPEG_SEGMENTS} JPEG segments")


def _bound_scans(data: bytes, place: int, pixels: int) -> None:
    scans = segments = 0
    while (found := _JPEG_MARKER_IN_SCAN.search(data, place)) and data[found.end() - 1] != 0xD9:
        scans += data[found.end() - 1] == 0xDA
        segments += 1
        if segments > _MAX_JPEG_SEGMENTS:
            raise ContainerError(f"the picture has more than {_MAX_JPEG_SEGMENTS} JPEG segments")
        if scans > _MAX_JPEG_SCANS or scans * pixels > _MAX_JPEG_SCANNED_PIXELS:
            raise ContainerError(f"the picture is a progressive JPEG with too many scans ({scans} or more)")
        place = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))


def _png(data: bytes) -> PictureFile:
    """Without ancillary chunks, but for transparency; an animation's default picture alone."""
    kept = [_PNG_SIGNATURE]
    exif = xmp = None
    place = len(_PNG_SIGNATURE)
    for _ in range(_MAX_PNG_CHUNKS):
        kind = data[place + 4 : place + 8]
        if len(kind) < 4:
            break
        length = int.from_bytes(data[place : place + 4])
        end = place + 12 + length
        if kind == b"tRNS" and data[24:26] in (b"\2\0", b"\4\0") and length == 2:
            kept.append(_grey_key(data[place + 8 : end - 4], bits=data[24]))
        elif not kind[0] & 0x20 or kind == b"tRNS":  # critical, by the letter's case
            kept.append(data[place:end])
        elif kind == b"eXIf" and exif is None:
            exif = data[place + 8 : end - 4]
        elif kind == b"iTXt" and xmp is None and data.startswith(b"XML:com.adobe.xmp\0\0", place + 8):
            xmp = data[place + 8 : end - 4]
        if kind == b"IEND":
            break
        place = end
    else:
        raise ContainerError(f"the picture has more than {_MAX_PNG_CHUNKS:,} PNG chunks")
    return PictureFile("PNG", b"".join(kept), _orientation(exif, xmp))


def _grey_key(value: bytes, bits: int) -> bytes:
    """The transparent grey of a picture of 2 or 4 bits in the 8 bits that Pillow makes of them."""
    scaled: int = int.from_bytes(value) * 255 // (2**bits - 1) & 0xFFFF
    body = b"tRNS" + scaled.to_bytes(2)
    return struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))


def _webp(data: bytes) -> PictureFile:
    """As it is; its canvas, which the decoder allocates at once, and the orientation of the extended form."""
    if data[12:16] != b"VP8X":
        return PictureFile("WEBP", data)  # at most 16,383 pixels each way, allocated after the size is told
    exif = xmp = None
    place = 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        kind, content = data[place : place + 4], slice(place + 8, place + 8 + length)
        if kind == b"EXIF" and exif is None:
            exif = data[content]
        elif kind == b"XMP " and xmp is None:
            xmp = data[content]
        place += 8 + length + length % 2
    width = 1 + int.from_bytes(data[24:27], "little")
    height = 1 + int.from_bytes(data[27:30], "little")
    return PictureFile("WEBP", data, _orientation(exif, xmp), width * height)


def _gif(data: bytes) -> PictureFile:
    """Without comments and application blocks before the first frame."""
    colours = data[10] if len(data) > 10 else 0
    place = 13 + (3 << (colours & 7) + 1 if colours & 0x80 else 0)
    head, control = data[:place], b""
    for _ in range(_MAX_GIF_BLOCKS):
        kind = data[place : place + 1]
        if kind in (b",", b";", b""):
            return PictureFile("GIF", b"".join((head, control, memoryview(data)[place:])))
        start = place
        place += 1
        if kind == b"!":
            place += 1
            for _ in range(_MAX_GIF_BLOCKS):
                length = data[place] if place < len(data) else 0
                place += 1 + length
                if not length:
                    break
            if data[start + 1 : start + 2] == b"\xf9":
                control = data[start:place]
    raise ContainerError(f"the picture has more than {_MAX_GIF_BLOCKS:,} GIF blocks before its first frame")


def _bmp(data: bytes) -> PictureFile:
    width, height = (abs(int.from_bytes(data[place : place + 4], "little", signed=True)) for place in (18, 22))
    if int.from_bytes(data[30:34], "little") in (1, 2) and width * height > _MAX_RUN_LENGTH_BMP_PIXELS:
        raise ContainerError(
            f"the picture is a run-length coded BMP with more than {_MAX_RUN_LENGTH_BMP_PIXELS:,} pixels"
        )
    return PictureFile("BMP", data)


def _avif(data: bytes) -> PictureFile:
    """With its EXIF items unnamed: an AVIF's orientation is in its own boxes, and they alone count."""
    patched = bytearray(data)
    place = 0
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        if length == 1:  # it follows in 64 bits
            length = int.from_bytes(data[place + 8 : place + 16])
        end = place + length if length else len(data)
        if data[place + 4 : place + 8] in (b"meta", b"moov"):
            patched[place:end] = patched[place:end].replace(b"Exif", b"skip")
        if end < place + 8:
            break
        place = end
    return PictureFile("AVIF", bytes(patched))


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], PictureFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(_PNG_SIGNATURE), _png),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _webp),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), read_tiff),
    (re.compile(rb".{4}ftyp(?:avif|avis|mif1|msf1)", re.DOTALL), _avif),
)
"""Each accepted format by its first bytes."""
