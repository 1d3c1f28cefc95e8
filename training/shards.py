"""Webdataset's tar shards, indexed once and then read in any order."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.many import IndexLists, Texts
from training.pictures import Pictures, as_list, bar, in_order, reading, split_of
from tresnet.folders import PICTURE_SUFFIXES


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


def read_shards(root: Path, shards: list[Path]) -> dict[str, Pictures]:
    """The shards' members, found once by their headers and then read in any order: no shuffle buffer is needed."""
    names_file = root / "labels.txt"
    names = names_file.read_text(encoding="utf-8-sig").rstrip().splitlines() if names_file.exists() else None
    found: dict[str, list[tuple[str, _Member, list[str]]]] = {}
    for shard in bar(shards, "indexing shards", len(shards)):
        split = split_of(shard.stem.split("-")[0])
        with reading(shard):
            found.setdefault(split, []).extend(_members(shard, names))
    labels = names or in_order({label for entries in found.values() for _, _, own in entries for label in own})
    place = {label: index for index, label in enumerate(labels)}

    def pictures(entries: list[tuple[str, _Member, list[str]]]) -> Pictures:
        targets = IndexLists([place[label] for label in own] for _, _, own in entries)
        number = {shard: index for index, shard in enumerate(shards)}
        members = np.array([(number[at.shard], at.offset, at.size) for _, at, _ in entries], np.int64)  # [N, 3]

        def read(index: int) -> bytes:
            shard, offset, size = members[index].tolist()
            return _Member(shards[shard], offset, size).read()

        return Pictures(labels, Texts(name for name, _, _ in entries), targets, read)

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
                with reading(f"{shard}: {member.name}"):
                    labels[key] = _shard_labels(suffix, where.read(), names)
    if missing := pictures.keys() - labels.keys():
        raise ValueError(f"{sorted(missing)[0]} has no .cls, .txt or .json")
    return [(f"{shard.name}:{key}", where, labels[key]) for key, where in pictures.items()]


def _shard_labels(suffix: str, content: bytes, names: list[str] | None) -> list[str]:
    text = content.decode().strip()
    if suffix == "cls":
        return [_named(int(text), names)]
    if suffix == "txt":
        return [part for part in text.split("|") if part]
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f'expected {{"labels": […]}} or {{"label": …}}, not {text[:40]}')
    return [_named(item, names) for item in as_list(value["labels"] if "labels" in value else value["label"])]


def _named(item: Any, names: list[str] | None) -> str:
    if not isinstance(item, int | str):
        raise ValueError(f"a label is a text or a number, not {item!r}")
    if names is None or isinstance(item, str):
        return str(item)
    if not 0 <= item < len(names):
        raise ValueError(f"the label {item} is not among the {len(names)} of labels.txt")
    return names[item]
