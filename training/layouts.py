"""Labelled pictures, wherever they lie: what is at a path enters, its splits in one form leave.

:func:`open_pictures` recognises

* a folder of ``<label>/<picture>``, or of ``train/``, ``val/`` and ``test/`` with such folders inside, also in capitals
  or as ``training/``, ``valid/``, ``validation/``, ``testing/``;
* a folder with ``labels.csv``, or a ``.csv`` or ``.parquet`` file: columns ``path`` and ``label`` or ``labels``
  (several split by ``|``, or Parquet's lists), and perhaps ``split``;
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
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.hub import read_hub
from training.pictures import (
    SPLITS,
    Pictures,
    Pixels,
    as_list,
    encode_png,
    from_paths,
    in_order,
    reading,
    split_of,
)  # fmt: skip
from training.shards import read_shards
from tresnet.errors import UserError
from tresnet.folders import pictures_below

logger = logging.getLogger(__name__)

HUB = "hf://"


def open_pictures(where: str) -> dict[str, Pictures]:
    """The splits at ``where``, by name (``train``, ``val``, ``test``), or ``all`` if there are no splits.

    Raises:
        UserError: if nothing there is in a form that is known, naming the forms.
    """
    if where.startswith(HUB):
        found = read_hub(where.removeprefix(HUB))
    else:
        with reading(where):
            found = _open_path(Path(where))
    found = {split: pictures for split, pictures in found.items() if len(pictures)}
    if not found:
        raise UserError(
            f"{where} holds no labelled pictures: expected <label>/<picture> folders (perhaps in train/ and val/), "
            "labels.csv, annotations/instances_<split>.json, <split>-*.tar, or a .csv or .parquet file"
        )
    for pictures in found.values():
        if repeated := [label for label, count in Counter(pictures.labels).items() if count > 1]:
            raise UserError(f"{where}: more than one label is called {repeated[0]!r}; names must differ")
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
        return {split_of(_coco_split(file)): _coco(path, file) for file in annotations}
    if shards := sorted(path.glob("*.tar")):
        return read_shards(path, shards)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a .csv or .parquet file")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or file of labelled pictures")
    return {split: _folders(folder) for split, folder in _splits(path).items()} or {"all": _folders(path)}


def _splits(root: Path) -> dict[str, Path]:
    """The folders that are splits: all, if all are called so; else those of labels, if one of them is to train on.

    A label may be called ``train`` or ``test``, too: then its pictures lie right in its folder, beside other labels'.
    """
    called = {SPLITS[folder.name.lower()]: folder for folder in _inside(root) if folder.name.lower() in SPLITS}
    if all(folder.name.lower() in SPLITS or not any(pictures_below(folder)) for folder in _inside(root)):
        return called
    of_labels = {
        split: folder
        for split, folder in called.items()
        if any(any(pictures_below(label)) for label in _inside(folder))
    }
    if "train" not in of_labels:
        return {}
    left = [folder.name for folder in _inside(root) if folder not in of_labels.values() and any(pictures_below(folder))]
    if left:
        logger.warning("%s: not used, as splits are called train, val and test: %s", root, ", ".join(left))
    return of_labels


def _inside(root: Path) -> list[Path]:
    """The folders right in ``root``; what hides behind a dot is the file manager's."""
    return [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]


def _folders(root: Path) -> Pictures:
    """A folder without pictures is no label."""
    found = {folder.name: list(pictures_below(folder)) for folder in _inside(root)}
    labels = [label for label, files in found.items() if files]
    if empty := [name for name, files in found.items() if not files]:
        logger.warning("%s: no label for want of pictures: %s", root, ", ".join(empty))
    files = [(index, file) for index, label in enumerate(labels) for file in found[label]]
    return from_paths(labels, [file for _, file in files], [[index] for index, _ in files])


def _table(path: Path) -> dict[str, Pictures]:
    with reading(path):
        rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
        if rows and not ("path" in rows[0] and {"label", "labels"} & rows[0].keys()):
            columns = ", ".join(map(str, rows[0]))
            raise UserError(f"{path}: its columns are {columns}; wanted: path, and label or labels, split by commas")
        named = [_names(row["labels" if "labels" in row else "label"]) for row in rows]
        paths = [path.parent / str(row["path"]) for row in rows]
    labels = in_order({name for names in named for name in names})
    place = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        split = str(row.get("split") or "all").strip()
        splits.setdefault(SPLITS.get(split.lower(), split), []).append(number)
    every = from_paths(labels, paths, [[place[name] for name in names] for names in named])
    return {split: every.select(numbers) for split, numbers in splits.items()}


def _names(cell: Any) -> list[str]:
    """The labels in a table's cell: a text is split by ``|``; an empty cell, or none, has none."""
    parts = cell.split("|") if isinstance(cell, str) else as_list(cell)
    return [name for part in parts if part is not None and (name := str(part).strip())]


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a byte order mark
        # Not strict, the reader would take a quote that nobody closes for the end of the table.
        return list(csv.DictReader(file, skipinitialspace=True, strict=True))


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


def _coco_split(annotations: Path) -> str:
    return annotations.stem.removeprefix("instances_")


def _coco(root: Path, annotations: Path) -> Pictures:
    folder = root / _coco_split(annotations)
    with reading(annotations):
        content = json.loads(annotations.read_text(encoding="utf-8"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        place = {category["id"]: index for index, category in enumerate(categories)}
        targets: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
        for annotation in content["annotations"]:
            targets[annotation["image_id"]].add(place[annotation["category_id"]])
        return from_paths(
            [str(category["name"]) for category in categories],
            [folder / image["file_name"] for image in content["images"]],
            [sorted(targets[image["id"]]) for image in content["images"]],
        )
