"""Labelled pictures, wherever they lie: one form for all of them, read one encoded file at a time.

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
import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from training.distributed import World
from tresnet.errors import UserError
from tresnet.picture import PictureError, Preprocessing, prepare

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
HUB = "hf://"
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures with the labels that are right for each."""

    labels: list[str]
    names: Sequence[str]
    targets: Sequence[Sequence[int]]
    """Indices into ``labels``, for each picture; exactly one where one label wins."""
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, chosen: Iterable[int]) -> Pictures:
        """Those at the indices ``chosen``, in that order."""
        kept, read = [int(index) for index in chosen], self.read
        return Pictures(
            self.labels, [self.names[i] for i in kept], [self.targets[i] for i in kept], lambda index: read(kept[index])
        )

    def relabelled(self, labels: list[str]) -> Pictures:
        """With another order of labels.

        Raises:
            UserError: if a picture has a label that is not among ``labels``.
        """
        if labels == self.labels:
            return self
        used = {index for target in self.targets for index in target}
        unknown = sorted({self.labels[index] for index in used} - set(labels))
        if len(unknown) == len(self.labels) == len(labels):  # ImageNet's folders, say: other names for the same classes
            logger.info("none of the data's labels is known: taking its %d in their own order", len(labels))
            return replace(self, labels=labels)
        if unknown:
            raise UserError(f"the data has labels that the checkpoint does not know: {', '.join(unknown[:5])}")
        place = {index: labels.index(self.labels[index]) for index in used}
        return replace(self, labels=labels, targets=[[place[index] for index in target] for target in self.targets])


def in_memory(labels: list[str], files: list[bytes], targets: Sequence[Sequence[int]]) -> Pictures:
    """Pictures that need no reading; their names are numbers."""
    return Pictures(labels, [f"{number:05}" for number in range(len(files))], targets, files.__getitem__)


def encode_png(picture: Pixels) -> bytes:
    """``uint8 [H, W]`` or ``[H, W, 3]`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def open_pictures(where: str) -> dict[str, Pictures]:
    """The splits at ``where``, by name (``train``, ``val``, ``test``), or ``all`` if there are no splits.

    Raises:
        UserError: if nothing there is in a form that is known, naming the forms.
    """
    if where.startswith(HUB):
        return _hub(where.removeprefix(HUB))
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


def without_bad(pictures: Pictures, *, skip_bad: bool, world: World) -> Pictures:
    """``pictures``, each of them decoded once to see that it can be; the run's processes share the work.

    Raises:
        UserError: if some cannot and ``skip_bad`` is false; the message names them.
    """
    how = Preprocessing(image_size=32)

    def fault(index: int) -> str | None:
        try:
            prepare(pictures.read(index), how)
        except (PictureError, OSError) as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        own = range(world.rank, len(pictures), world.size)
        told = track(
            pool.map(fault, own), "looking at every picture", len(own), transient=True, disable=not world.is_first
        )
        mine = {index: reason for index, reason in zip(own, told, strict=True) if reason}
    faults = dict(sorted(item for part in world.gather(mine) for item in part.items()))
    if not faults:
        return pictures
    named = "\n".join(f"  {pictures.names[index]}: {reason}" for index, reason in list(faults.items())[:20])
    more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
    if not skip_bad:
        raise UserError(
            f"{len(faults)} of {len(pictures)} pictures cannot be read; --skip-bad goes on without:\n{named}{more}"
        )
    pictures_are = "a picture that cannot" if len(faults) == 1 else f"{len(faults)} pictures that cannot"
    logger.warning("going on without %s be read:\n%s%s", pictures_are, named, more)
    return pictures.select(index for index in range(len(pictures)) if index not in faults)


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
        return {_split_of(file.stem.removeprefix("instances_")): _coco(path, file) for file in annotations}
    if shards := sorted(path.glob("*.tar")):
        return _shards(path, shards)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a .csv or .parquet file")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or file of labelled pictures")
    parts = {entry.name: _SPLITS[entry.name] for entry in path.iterdir() if entry.is_dir() and entry.name in _SPLITS}
    if "train" in parts.values():
        return {split: _folders(path / name) for name, split in parts.items()}
    return {"all": _folders(path)}


def _split_of(name: str) -> str:
    """``train2017`` and the like to ``train``."""
    letters = name.rstrip("0123456789-_")
    return _SPLITS.get(letters, letters)


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
    return _from_paths(labels, [file for _, file in files], [[index] for index, _ in files])


def _from_paths(labels: list[str], paths: list[Path], targets: list[list[int]]) -> Pictures:
    return Pictures(labels, [str(path) for path in paths], targets, lambda index: paths[index].read_bytes())


def _table(path: Path) -> dict[str, Pictures]:
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    named = [[part for part in str(row["labels" if "labels" in row else "label"]).split("|") if part] for row in rows]
    labels = _in_order({name for names in named for name in names})
    place = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        split = str(row.get("split") or "all")
        splits.setdefault(_SPLITS.get(split, split), []).append(number)
    every = _from_paths(
        labels, [path.parent / str(row["path"]) for row in rows], [[place[name] for name in names] for names in named]
    )
    return {split: every.select(numbers) for split, numbers in splits.items()}


def _in_order(labels: set[str]) -> list[str]:
    """Numbers by value, all else by the alphabet."""
    return sorted(labels, key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label))


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'tresnet-serving[data]'") from error
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
    return _from_paths(
        [category["name"] for category in categories],
        [folder / image["file_name"] for image in content["images"]],
        [sorted(targets[image["id"]]) for image in content["images"]],
    )


@dataclass(frozen=True)
class _Member:
    """Where one file lies inside a shard."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def _shards(root: Path, shards: list[Path]) -> dict[str, Pictures]:
    """The shards' members, found once by their headers and then read in any order: no shuffle buffer is needed."""
    names_file = root / "labels.txt"
    names = names_file.read_text(encoding="utf-8").splitlines() if names_file.exists() else None
    found: dict[str, list[tuple[str, _Member, list[str]]]] = {}
    for shard in track(shards, "indexing shards", transient=True):
        split = _split_of(shard.stem.split("-")[0])
        found.setdefault(split, []).extend(_members(shard, names))
    labels = names or _in_order({label for entries in found.values() for _, _, own in entries for label in own})
    place = {label: index for index, label in enumerate(labels)}

    def pictures(entries: list[tuple[str, _Member, list[str]]]) -> Pictures:
        targets = [[place[label] for label in own] for _, _, own in entries]
        return Pictures(labels, [name for name, _, _ in entries], targets, lambda index: entries[index][1].read())

    return {split: pictures(entries) for split, entries in found.items()}


def _members(shard: Path, names: list[str] | None) -> list[tuple[str, _Member, list[str]]]:
    pictures: dict[str, _Member] = {}
    labels: dict[str, list[str]] = {}
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            key, _, suffix = member.name.rpartition(".")
            where = _Member(shard, member.offset_data, member.size)
            if f".{suffix.lower()}" in PICTURE_SUFFIXES:
                pictures[key] = where
            elif suffix in ("cls", "txt", "json") and key not in labels:
                labels[key] = _shard_labels(suffix, where.read(), names)
    if missing := pictures.keys() - labels.keys():
        raise ValueError(f"{shard.name}: {sorted(missing)[0]} has no .cls, .txt or .json")
    return [(f"{shard.name}:{key}", where, labels[key]) for key, where in pictures.items()]


def _shard_labels(suffix: str, content: bytes, names: list[str] | None) -> list[str]:
    text = content.decode().strip()
    if suffix == "cls":
        return [names[int(text)] if names else str(int(text))]
    if suffix == "txt":
        return [part for part in text.split("|") if part]
    value = json.loads(text)
    own = value["labels"] if "labels" in value else [value["label"]]
    return [names[item] if names and isinstance(item, int) else str(item) for item in own]


def _hub(name: str) -> dict[str, Pictures]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf://{name}: the hub's data sets need: pip install 'tresnet-serving[data]'") from error
    logger.info("fetching hf://%s, unless it is here already", name)
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # every fault of the network, the hub and the name
        raise UserError(
            f"hf://{name}: could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            "without a network, bring the data as a folder"
        ) from error
    return {_SPLITS.get(str(split), str(split)): _hub_split(name, part) for split, part in splits.items()}


def _hub_split(name: str, part: Any) -> Pictures:
    import datasets

    features = part.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = {
        column: inner
        for column, feature in features.items()
        if isinstance(inner := getattr(feature, "feature", feature), datasets.ClassLabel)
    }
    if not images or not classes:
        raise UserError(
            f"hf://{name}: needs a column of pictures and one of class labels; it has {', '.join(features)}"
        )
    column, label = next(iter(classes.items()))
    targets = [value if isinstance(value, list) else [value] for value in part[column]]
    encoded = part.cast_column(images[0], datasets.Image(decode=False))

    def read(index: int) -> bytes:
        value = encoded[index][images[0]]
        data: bytes = value["bytes"] or Path(value["path"]).read_bytes()
        return data

    return Pictures(list(label.names), [f"{name} {number}" for number in range(len(part))], targets, read)
