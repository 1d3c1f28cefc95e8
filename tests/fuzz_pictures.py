"""Coverage-guided fuzzing of bytes → pixels: ``make fuzz``. Only a picture's own errors may leave, and in time.

Seeds are the corpus of strange pictures; what libFuzzer finds of new ways through the code stays in the folder given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "tresnet"], enable_loader_override=False):
    from tresnet.picture import PictureError, Preprocessing, prepare

HOW = Preprocessing(image_size=32)


def one_input(data: bytes) -> None:
    """Raises if anything but a picture's own error leaves."""
    try:
        prepared = prepare(data, HOW, max_pixels=1_000_000)
    except PictureError:
        return
    assert prepared.pixels.shape == (32, 32, 3)


def main() -> None:
    """``fuzz_pictures.py FOLDER [libFuzzer's options]``; the folder is filled with seeds at the first time."""
    from pictures_corpus import small_files

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(small_files()):
        (folder / f"seed-{number:03}").write_bytes(data)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(folder)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
