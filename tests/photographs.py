"""Real photographs as folders of labelled pictures, from packages that bring some: each is cut into tiles."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from PIL import Image

SIDE = 48
MOST_TILES = 100
KEPT_BACK = 4
PHOTOGRAPHS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "grass": ("skimage", "data/grass.png"),
    "stars": ("skimage", "data/hubble_deep_field.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
}


def tiles(label: str) -> list[Image.Image]:
    """Squares that do not overlap, spread over the whole of the photograph."""
    package, path = PHOTOGRAPHS[label]
    with Image.open(str(files(package).joinpath(path))) as opened:
        photograph = opened.convert("RGB")
    found = [
        photograph.crop((left, top, left + SIDE, top + SIDE))
        for top in range(0, photograph.height - SIDE + 1, SIDE)
        for left in range(0, photograph.width - SIDE + 1, SIDE)
    ]
    return found[:: -(-len(found) // MOST_TILES)]


def write_folders(root: Path) -> list[tuple[str, Path]]:
    """``root/<label>/<number>.jpg``, but for a few of each label, which nobody trains on: their labels and files."""
    kept_back = []
    for label in PHOTOGRAPHS:
        (root / label).mkdir(parents=True)
        found = tiles(label)
        aside = {len(found) * (number + 1) // (KEPT_BACK + 1) for number in range(KEPT_BACK)}
        for number, tile in enumerate(found):
            path = root.parent / f"{label}-{number}.jpg" if number in aside else root / label / f"{number:03}.jpg"
            tile.save(path, quality=95)
            if number in aside:
                kept_back.append((label, path))
    return kept_back
