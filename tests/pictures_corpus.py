"""Strange pictures, made by code: each with the pixels it must become, or the code it must be refused with.

The pixels come from the array that was encoded, not from another decoder. All whole pictures are 96 pixels square, so
that preparing them at that size is the decoding alone.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from picture_files import bmp, bmp_rle8, jpeg_lossless, jpeg_segment, png, tiff
from PIL import Image, ImageCms
from sklearn.datasets import load_sample_image

SIDE = 96
LOSSY = 4.0
"""Mean distance that JPEG, WebP or AVIF at high quality may add, in levels of 255."""


@dataclass(frozen=True)
class Case:
    """``pixels`` within ``bound`` (mean distance in levels), or refused with ``code``."""

    name: str
    data: bytes
    pixels: np.ndarray | None = None
    bound: float = 0.0
    code: str = ""


@cache
def photo() -> np.ndarray:
    """``uint8 [96, 96, 3]``, unlike itself however it is turned."""
    return np.asarray(Image.fromarray(load_sample_image("flower.jpg")).resize((SIDE, SIDE), box=(100, 0, 500, 400)))


@cache
def grey() -> np.ndarray:
    return photo()[:, :, 1]


@cache
def alpha() -> np.ndarray:
    """``uint8 [96, 96]`` from clear to opaque."""
    return np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8)


def on_white(rgb: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return rgb * share + 255 * (1 - share)


def three(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def saved(image: Image.Image | np.ndarray, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_, **options)
    return buffer.getvalue()


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The upright picture of one stored with an EXIF orientation."""
    if orientation in (2, 3):
        stored = stored[:, ::-1]
    if orientation in (3, 4):
        stored = stored[::-1]
    if orientation >= 5:
        stored = stored.transpose(1, 0, 2)
        if orientation in (6, 7):
            stored = stored[:, ::-1]
        if orientation in (7, 8):
            stored = stored[::-1]
    return stored


def _oriented() -> Iterator[Case]:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = turned(photo(), orientation)
        yield Case(f"jpeg-exif-{orientation}", saved(photo(), "JPEG", quality=98, exif=exif), pixels, LOSSY)
        yield Case(f"png-exif-{orientation}", saved(photo(), "PNG", exif=exif), pixels)
        yield Case(f"webp-exif-{orientation}", saved(photo(), "WEBP", lossless=True, exif=exif), pixels)
        yield Case(f"tiff-exif-{orientation}", saved(photo(), "TIFF", exif=exif), pixels)
        yield Case(f"tiff-lzw-exif-{orientation}", saved(photo(), "TIFF", exif=exif, compression="tiff_lzw"), pixels)
        yield Case(f"avif-exif-{orientation}", saved(photo(), "AVIF", quality=98, exif=exif), pixels, LOSSY)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    yield Case("jpeg-xmp-6", saved(photo(), "JPEG", quality=98, xmp=xmp), turned(photo(), 6), LOSSY)
    damaged = Image.Exif()
    damaged[0x0112] = 77
    yield Case("jpeg-exif-77", saved(photo(), "JPEG", quality=98, exif=damaged), photo(), LOSSY)
    exif_garbage = saved(photo(), "JPEG", quality=98, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    yield Case("jpeg-exif-garbage", exif_garbage, photo(), LOSSY)


def _inks() -> tuple[np.ndarray, np.ndarray]:
    """The photo as ``[96, 96, 4]`` inks, and what they look like by the plain rule (1 - C)(1 - K)."""
    rgb = photo().astype(np.float64)
    black = (255 - rgb.max(axis=2)) // 2
    ink = 255 - np.minimum(255, rgb * 255 / (255 - black[..., None]))
    inks = np.dstack((ink, black)).round().astype(np.uint8)
    seen = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    return inks, seen


def _jpegs() -> Iterator[Case]:
    inks, seen = _inks()
    cmyk = saved(Image.frombytes("CMYK", (SIDE, SIDE), inks.tobytes()), "JPEG", quality=98)
    yield Case("jpeg-cmyk-adobe", cmyk, seen, LOSSY)
    ycc = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    planes = np.dstack((255 - ycc, inks[..., 3]))
    ycck = saved(Image.frombytes("CMYK", (SIDE, SIDE), planes.tobytes()), "JPEG", quality=98)
    place = ycck.index(b"Adobe") + 11
    yield Case("jpeg-ycck-adobe", ycck[:place] + b"\x02" + ycck[place + 1 :], seen, LOSSY)
    yield Case("jpeg-progressive", saved(photo(), "JPEG", quality=98, progressive=True), photo(), LOSSY)
    yield Case("jpeg-grey", saved(grey(), "JPEG", quality=98), three(grey()), LOSSY)
    yield Case("jpeg-420", saved(photo(), "JPEG", quality=98, subsampling=2), photo(), 2 * LOSSY)
    yield Case("jpeg-lossless", jpeg_lossless(grey()), three(grey()))
    large = np.repeat(np.repeat(grey(), 4, axis=0), 4, axis=1)
    yield Case("jpeg-lossless-large", jpeg_lossless(large), three(grey()), LOSSY)
    whole = saved(photo(), "JPEG", quality=98)
    yield Case("jpeg-trailing-garbage", whole + b"PK\3\4 and more" * 1000, photo(), LOSSY)
    yield Case("jpeg-leading-junk", b"junk" + whole, code="undecodable_image")
    segments = jpeg_segment(0xE1, b"Exif\0\0x") * 500 + jpeg_segment(0xFE, b"words") * 500
    yield Case("jpeg-1000-segments", whole[:2] + segments + whole[2:], photo(), LOSSY)
    yield Case("jpeg-junk-between-segments", whole[:20] + bytes(5000) + b"\xff" * 99 + whole[20:], photo(), LOSSY)
    yield Case("jpeg-restarts", saved(photo(), "JPEG", quality=98, restart_marker_blocks=1), photo(), LOSSY)
    mpo = saved(Image.fromarray(photo()), "MPO", quality=98, save_all=True, append_images=[Image.new("RGB", (40, 40))])
    yield Case("jpeg-mpo", mpo, photo(), LOSSY)
    for profile in ("srgb", "swapped"):
        yield Case(f"jpeg-icc-{profile}", saved(photo(), "JPEG", quality=98, icc_profile=icc(profile)), photo(), LOSSY)


def icc(kind: str) -> bytes:
    """sRGB's profile, or one whose red and blue change places: what it says is not applied."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if kind == "swapped":
        profile = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    return profile


def _pngs() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    deep = photo().astype(np.uint16) * 256 + rng.integers(0, 256, photo().shape, np.uint16)
    deep_grey = deep[..., 1]
    opacity = alpha().astype(np.uint16) * 257
    for interlaced in (False, True):
        way = "-interlaced" if interlaced else ""
        yield Case(f"png-rgb{way}", png(photo(), 2, interlaced=interlaced), photo())
        yield Case(f"png-rgb16{way}", png(deep, 2, 16, interlaced=interlaced), deep / 257, 0.6)
        yield Case(f"png-grey16{way}", png(deep_grey, 0, 16, interlaced=interlaced), three(deep_grey / 257), 0.6)
        for bits in (1, 2, 4):
            coarse = grey() >> (8 - bits)
            shown = three(coarse.astype(float) * 255 / (2**bits - 1))
            yield Case(f"png-grey{bits}{way}", png(coarse, 0, bits, interlaced=interlaced), shown)
        rgba = np.dstack((photo(), alpha()))
        yield Case(f"png-rgba{way}", png(rgba, 6, interlaced=interlaced), on_white(photo(), alpha()), 0.6)
    rgba16 = np.dstack((deep, opacity))
    yield Case("png-rgba16", png(rgba16, 6, 16), on_white(deep / 257, alpha()), 1)
    yield Case("png-la", png(np.dstack((grey(), alpha())), 4), on_white(three(grey()), alpha()), 0.6)
    yield Case("png-la16", png(np.dstack((deep_grey, opacity)), 4, 16), on_white(three(deep_grey / 257), alpha()), 1)
    yield from _transparent_pngs(deep, deep_grey)
    yield from _png_chunks()


def _transparent_pngs(deep: np.ndarray, deep_grey: np.ndarray) -> Iterator[Case]:
    palette = np.random.default_rng(1).integers(0, 256, (16, 3), np.uint8)
    indices = grey() >> 4
    colours = palette[indices].astype(float)
    plte = (b"PLTE", palette.tobytes())
    yield Case("png-palette", png(indices, 3, before=[plte]), colours)
    yield Case("png-palette4", png(indices, 3, 4, before=[plte], interlaced=True), colours)
    one = np.where(indices[..., None] == 3, 255.0, colours)
    yield Case("png-palette-one-clear", png(indices, 3, before=[plte, (b"tRNS", b"\xff\xff\xff\0")]), one)
    opacities = np.arange(0, 256, 17, dtype=np.uint8)
    mixed = on_white(colours, opacities[indices])
    yield Case("png-palette-opacities", png(indices, 3, before=[plte, (b"tRNS", opacities.tobytes())]), mixed, 0.6)

    def keyed(samples: np.ndarray, colour_type: int, bits: int, shown: np.ndarray, bound: float = 0) -> Case:
        key = samples[tuple(np.argwhere(samples.reshape(SIDE, SIDE, -1).all(axis=2) & (grey() < 200))[0])]
        clear = (samples == key).reshape(SIDE, SIDE, -1).all(axis=2)
        chunk = (b"tRNS", np.atleast_1d(key).astype(">u2").tobytes())
        pixels = np.where(clear[..., None], 255.0, shown)
        return Case(f"png-{colour_type}-{bits}-key", png(samples, colour_type, bits, before=[chunk]), pixels, bound)

    yield keyed(photo(), 2, 8, photo())
    yield keyed(deep, 2, 16, deep / 257, 0.6)
    yield keyed(grey(), 0, 8, three(grey()))
    yield keyed(deep_grey, 0, 16, three(deep_grey / 257), 0.6)
    for bits in (1, 2, 4):
        coarse = grey() >> (8 - bits)
        yield keyed(coarse, 0, bits, three(coarse.astype(float) * 255 / (2**bits - 1)))


def _png_chunks() -> Iterator[Case]:
    bomb = zlib.compress(bytes(50_000_000), 9)
    for name, kind, body in (
        ("icc", b"iCCP", b"x\0\0" + bomb),
        ("ztxt", b"zTXt", b"x\0\0" + bomb),
        ("itxt", b"iTXt", b"x\0\1\0\0\0" + bomb),
    ):
        yield Case(f"png-{name}-bomb", png(photo(), 2, before=[(kind, body)]), photo())
        yield Case(f"png-{name}-bomb-after", png(photo(), 2, after=[(kind, body)]), photo())
    yield Case("png-10000-texts", png(photo(), 2, before=[(b"tEXt", b"a\0b")] * 10_000), photo())
    yield Case("png-icc-swapped", saved(photo(), "PNG", icc_profile=icc("swapped")), photo())
    yield Case("png-trailing", png(photo(), 2) + b"more" * 999, photo())
    second = Image.fromarray(255 - photo())
    yield Case("apng", saved(photo(), "PNG", save_all=True, append_images=[second]), photo())
    unknown = png(photo(), 2, before=[(b"ABCD", b"a critical chunk that no one knows")])
    yield Case("png-unknown-critical", unknown, photo())


def _animated() -> Iterator[Case]:
    palette = Image.fromarray(photo()).quantize(64)
    shown = np.asarray(palette.convert("RGB"))
    frames = [Image.fromarray(255 - photo()).quantize(64)]
    yield Case("gif", saved(palette, "GIF"), shown)
    yield Case("gif-interlaced", saved(palette, "GIF", interlace=1), shown)
    yield Case("gif-animated", saved(palette, "GIF", save_all=True, append_images=frames), shown)
    clear = np.where(np.asarray(palette)[..., None] == 5, 255, shown)
    yield Case("gif-clear", saved(palette, "GIF", transparency=5), clear)
    small = bytearray(saved(palette, "GIF"))
    small[6:10] = struct.pack("<HH", 10, 10)  # the screen, smaller than its frame
    yield Case("gif-frame-over-screen", bytes(small), shown)
    comments = b"!\xfe" + (b"\xff" + b"c" * 255) * 5000 + b"\0"
    plain = saved(palette, "GIF")
    start = plain.index(b",\0\0\0\0")
    yield Case("gif-comments", plain[:start] + comments + plain[start:], shown)
    inverse = Image.fromarray(255 - photo())
    webp = saved(photo(), "WEBP", lossless=True, save_all=True, append_images=[inverse])
    yield Case("webp-animated", webp, photo())
    yield Case("webp", saved(photo(), "WEBP", quality=98), photo(), LOSSY)
    rgba = np.dstack((photo(), alpha()))
    yield Case("webp-alpha", saved(rgba, "WEBP", lossless=True, exact=True), on_white(photo(), alpha()), 0.6)
    avif = saved(Image.fromarray(photo()), "AVIF", quality=98, save_all=True, append_images=[inverse])
    yield Case("avif-animated", avif, photo(), LOSSY)
    yield Case("avif", saved(photo(), "AVIF", quality=98), photo(), LOSSY)
    yield Case("avif-alpha", saved(rgba, "AVIF", quality=98), on_white(photo(), alpha()), LOSSY)


def _bmps() -> Iterator[Case]:
    rows = photo()[..., ::-1]
    yield Case("bmp-24", bmp(rows[::-1].tobytes(), SIDE, SIDE, 24), photo())
    yield Case("bmp-24-top-down", bmp(rows.tobytes(), SIDE, -SIDE, 24), photo())
    red, green, blue = (photo()[..., i].astype(np.uint16) for i in range(3))
    for name, packed, masks, depths in (
        ("555", (red >> 3) << 10 | (green >> 3) << 5 | blue >> 3, (0x7C00, 0x3E0, 0x1F), (31, 31, 31)),
        ("565", (red >> 3) << 11 | (green >> 2) << 5 | blue >> 3, (0xF800, 0x7E0, 0x1F), (31, 63, 31)),
    ):
        shifts = [(mask & -mask).bit_length() - 1 for mask in masks]
        channels = zip(masks, shifts, depths, strict=True)
        shown = np.dstack([((packed & mask) >> shift) * (255.0 / depth) for mask, shift, depth in channels])
        rows_up = packed[::-1]
        yield Case(
            f"bmp-{name}",
            bmp(rows_up.astype("<u2").tobytes(), SIDE, SIDE, 16, compression=3, tables=struct.pack("<III", *masks)),
            shown,
            1,
        )
    indices = grey() >> 4
    palette = np.random.default_rng(2).integers(0, 256, (256, 4), np.uint8)
    colours = palette[indices][..., 2::-1]
    yield Case("bmp-8", bmp(indices[::-1].tobytes(), SIDE, SIDE, 8, tables=palette.tobytes()), colours)
    rle = bmp(bmp_rle8(indices), SIDE, SIDE, 8, compression=1, tables=palette.tobytes())
    yield Case("bmp-rle8", rle, colours)
    yield Case("bmp-embedded-jpeg", bmp(b"x", SIDE, SIDE, 24, compression=4), code="undecodable_image")


def _tiffs() -> Iterator[Case]:
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg"):
        bound = LOSSY if compression == "jpeg" else 0
        data = saved(photo(), "TIFF", compression=compression, **({"quality": 98} if bound else {}))
        yield Case(f"tiff-{compression}", data, photo(), bound)
    bilevel = Image.fromarray(grey()).convert("1")
    for compression in ("group3", "group4"):
        data = saved(bilevel, "TIFF", compression=compression)
        yield Case(f"tiff-{compression}", data, three(np.asarray(bilevel) * 255))
    for compression in ("lzma", "zstd"):
        yield Case(f"tiff-{compression}", saved(photo(), "TIFF", compression=compression), code="undecodable_image")
    pages = [Image.fromarray(255 - photo())]
    yield Case("tiff-pages", saved(photo(), "TIFF", save_all=True, append_images=pages), photo())
    yield Case("tiff-cmyk", saved(Image.frombytes("CMYK", (SIDE, SIDE), _inks()[0].tobytes()), "TIFF"), _inks()[1], 1)
    yield Case("tiff-float", saved(Image.fromarray(grey().astype(np.float32)), "TIFF"), code="undecodable_image")
    yield Case("tiff-int32", saved(Image.fromarray(grey().astype(np.int32)), "TIFF"), code="undecodable_image")
    rgba = np.dstack((photo(), alpha()))
    yield Case("tiff-rgba", saved(rgba, "TIFF"), on_white(photo(), alpha()), 0.6)
    for order in "<>":
        deep = (grey().astype(np.uint16) * 256 + 99).astype(f"{order}u2")
        data = tiff(tiff_tags(bits=16, photometric=1), deep.tobytes(), order=order)
        yield Case(f"tiff-grey16-{order}", data, three(deep / 257.0), 0.6)
    rgb = tiff_tags(bits=8, photometric=2, samples=3, start=16)
    yield Case("bigtiff", tiff(rgb, photo().tobytes(), big=True), photo())
    white_is_zero = tiff(tiff_tags(bits=8, photometric=0), grey().tobytes())
    yield Case("tiff-white-is-zero", white_is_zero, three(255 - grey()))
    white_is_zero = tiff(tiff_tags(bits=16, photometric=0), bytes(2 * SIDE * SIDE))
    yield Case("tiff-white-is-zero-16", white_is_zero, code="undecodable_image")
    tiles = [photo()[y : y + 32, x : x + 32].tobytes() for y in range(0, SIDE, 32) for x in range(0, SIDE, 32)]
    yield Case("tiff-tiled", _tiled(tiles, 1), photo())
    yield Case("tiff-tiled-deflate", _tiled([zlib.compress(tile) for tile in tiles], 8), photo())


def tiff_tags(
    *, bits: int, photometric: int, samples: int = 1, start: int = 8, compression: int = 1, side: int = SIDE
) -> list[tuple[int, str, list[int]]]:
    return [
        (256, "L", [side]), (257, "L", [side]), (258, "H", [bits] * samples), (259, "H", [compression]),
        (262, "H", [photometric]), (273, "L", [start]), (277, "H", [samples]), (278, "L", [side]),
        (279, "L", [side * side * samples * bits // 8]),
    ]  # fmt: skip


def _tiled(tiles: list[bytes], compression: int) -> bytes:
    starts = list(np.cumsum([8, *map(len, tiles)])[:-1])
    tags = [
        entry
        for entry in tiff_tags(bits=8, photometric=2, samples=3, compression=compression)
        if entry[0] not in (273, 278, 279)
    ]
    tags += [(322, "L", [32]), (323, "L", [32]), (324, "L", starts), (325, "L", [len(tile) for tile in tiles])]
    return tiff(tags, b"".join(tiles))


def _shapes() -> Iterator[Case]:
    for name, size in (("dot", (1, 1)), ("tall", (1, 30_000)), ("wide", (30_000, 1)), ("narrow", (2, 300))):
        for format_ in ("PNG", "JPEG", "TIFF", "BMP", "GIF"):
            grey_level = np.full((SIDE, SIDE, 3), 200)
            yield Case(f"{name}-{format_}", saved(Image.new("RGB", size, (200,) * 3), format_), grey_level, 1)
    yield Case(
        "empty-png",
        png(np.zeros((1, 1), np.uint8), 0).replace(b"IHDR\0\0\0\1", b"IHDR\0\0\0\0"),
        code="undecodable_image",
    )
    yield Case("empty-bmp", bmp(b"", 0, 0, 24), code="undecodable_image")


def _refused() -> Iterator[Case]:
    image = Image.fromarray(photo())
    for format_ in ("ICO", "PCX", "PPM", "JPEG2000", "EPS", "PDF", "TGA", "DDS", "ICNS", "SGI", "DIB", "QOI"):
        if format_ in Image.SAVE:
            yield Case(f"refused-{format_}", saved(image, format_), code="undecodable_image")
    for name, data in (
        ("text", b"just some text"),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'),
        ("html-gif-polyglot", b"GIF89a/*<script>*/=1;" + bytes(99)),
        ("psd", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(400)),
        ("fits", b"SIMPLE  =                    T".ljust(2880)),
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)),
        ("zip", b"PK\3\4" + bytes(99)),
        ("nothing but a magic number", b"\xff\xd8\xff"),
        ("riff", b"RIFF\x04\0\0\0WEBP"),
        ("zeros", bytes(1000)),
    ):
        yield Case(f"refused-{name}", data, code="undecodable_image")


@cache
def corpus() -> dict[str, Case]:
    """Every case by its name."""
    Image.init()
    makers: tuple[Callable[[], Iterator[Case]], ...] = (
        _oriented, _jpegs, _pngs, _animated, _bmps, _tiffs, _shapes, _refused,
    )  # fmt: skip
    return {case.name: case for maker in makers for case in maker()}


def small_files() -> list[bytes]:
    """One small whole file of each format and kind of pixels: what mutations start from."""
    return [case.data for case in corpus().values() if len(case.data) < 40_000]
