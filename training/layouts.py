"""Labelled pictures, wherever they lie: what is at a path enters, its splits in one form leave.

:func:`open_pictures` recognises

* a folder of ``<label>/<picture>``, or of ``train/``, ``val/`` and ``test/`` with such folders inside;
* a folder with ``labels.csv``, or a ``.csv`` or ``.parquet`` file: columns ``path`` and ``label`` or ``labels``
  (several split by ``|``), and perhaps ``split``;
* COCO: ``annotations/instances_<split>.json`` beside folders ``<split>/`` of pictures;
* webdataset's tar shards, ``<split>-*.tar``: ``KEY.jpg`` beside ``KEY.cls``, ``KEY.txt`` or ``KEY.json``;
* MNIST's four idx files;
* ``hf://OWNER/NAME``, a data set of the Hugging Face hub, where there is a network.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.hub import read_hub
from training.pictures import SPLITS, Pictures, Pixels, encode_png, from_paths, in_order, split_of
from training.shards import read_shards
from tresnet.errors import UserError
from tresnet.folders import PICTURE_SUFFIXES

logger = logging.getLogger(__name__)

HUB = "hf://"


def open_pictures(where: str) -> dict[str, Pictures]:
    """The splits at ``where``, by name (``train``, ``val``, ``test``), or ``all`` if there are no splits.

    Raises:
        UserError: if nothing there is in a form that is known, naming the forms.
    """
    if where.startswith(HUB):
        return read_hub(where.removeprefix(HUB))
    path = Path(where)
    try:
        found = _open_path(path)
    except (OSError, KeyError, ValueError, IndexError, tarfile.TarError, EOFError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: cannot be read as labelled pictures: {reason}") from error
    found = {split: pictures for split, pictures in found.items() if len(pictures)}
    if not found:
        raise UserError(
            f"{where} holds no labelled pictures: expected <label>/<picture> folders (perhaps in train/ and val/), "
            "labels.csv, annotations/instances_<split>.json, <split>-*.tar, or a .csv or .parquet file"
        )
    return found


def read_idx(folder: Path, part: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """MNIST's idx files: ``part`` is ``train`` or ``t10k``; gives ``uint8 [N, 28, 28]`` and classes ``[N]``."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def _open_path(path: Path) -> dict[str, Pictures]:
    table = path if path.suffix in (".csv", ".parquet") else path / "labels.csv"
    if table.is_file():
        return _table(table)
    if (path / "train-images-idx3-ubyte.gz").exists():
        return {"train": _idx(path, "train"), "test": _idx(path, "t10k")}
    if annotations := sorted(path.glob("annotations/instances_*.json")):
        return {split_of(file.stem.removeprefix("instances_")): _coco(path, file) for file in annotations}
    if shards := sorted(path.glob("*.tar")):
        return read_shards(path, shards)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a .csv or .parquet file")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or file of labelled pictures")
    parts = {entry.name: SPLITS[entry.name] for entry in path.iterdir() if entry.is_dir() and entry.name in SPLITS}
    if "train" in parts.values():
        return {split: _folders(path / name) for name, split in parts.items()}
    return {"all": _folders(path)}


def _folders(root: Path) -> Pictures:
    """What hides behind a dot is the file manager's, and a folder without pictures no label."""
    found = {
        entry.name: [
            file
            for file in sorted(entry.rglob("*"))
            if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")
        ]
        for entry in sorted(root.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    labels = [label for label, files in found.items() if files]
    if empty := [name for name, files in found.items() if not files]:
        logger.warning("%s: no label for want of pictures: %s", root, ", ".join(empty))
    files = [(index, file) for index, label in enumerate(labels) for file in found[label]]
    return from_paths(labels, [file for _, file in files], [[index] for index, _ in files])


def _table(path: Path) -> dict[str, Pictures]:
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    named = [[part for part in str(row["labels" if "labels" in row else "label"]).split("|") if part] for row in rows]
    labels = in_order({name for names in named for name in names})
    place = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        split = str(row.get("split") or "all")
        splits.setdefault(SPLITS.get(split, split), []).append(number)
    every = from_paths(
        labels, [path.parent / str(row["path"]) for row in rows], [[place[name] for name in names] for names in named]
    )
    return {split: every.select(numbers) for split, numbers in splits.items()}


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install -e '.[data]' in the checkout") from error
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def _idx(folder: Path, part: str) -> Pictures:
    pixels, classes = read_idx(folder, part)
    labels = [str(number) for number in range(int(classes.max()) + 1)]
    names = [f"{part} {number}" for number in range(len(pixels))]
    return Pictures(labels, names, classes[:, None].tolist(), lambda index: encode_png(pixels[index]))


def _coco(root: Path, annotations: Path) -> Pictures:
    content = json.loads(annotations.read_text(encoding="utf-8"))
    categories = sorted(content["categories"], key=lambda category: category["id"])
    place = {category["id"]: index for index, category in enumerate(categories)}
    targets: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        targets[annotation["image_id"]].add(place[annotation["category_id"]])
    folder = root / annotations.stem.removeprefix("instances_")
    return from_paths(
        [category["name"] for category in categories],
        [folder / image["file_name"] for image in content["images"]],
        [sorted(targets[image["id"]]) for image in content["images"]],
    )
