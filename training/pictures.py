"""Labelled pictures: one form for all of them, read one encoded file at a time.

:func:`training.layouts.open_pictures` finds them on disk; :mod:`training.demos` makes them.
"""

from __future__ import annotations

import csv
import io
import logging
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import track

from training.distributed import World
from training.many import Chosen, IndexLists, Texts
from tresnet.errors import UserError
from tresnet.picture import PictureError, Preprocessing, prepare

logger = logging.getLogger(__name__)

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What splits are called, in lower case."""
_FAULTS = (
    OSError, KeyError, ValueError, IndexError, TypeError, AttributeError, EOFError,
    csv.Error, tarfile.TarError, zlib.error,
)  # fmt: skip
"""What data of another form than expected may raise."""
_AT_ONCE = 4096


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
        which, read = np.fromiter(chosen, np.int64), self.read
        return Pictures(
            self.labels, Chosen(self.names, which), Chosen(self.targets, which), lambda index: read(int(which[index]))
        )

    def relabelled(self, labels: list[str], *, of: str = "the checkpoint", by_order: bool = False) -> Pictures:
        """With the labels ``of`` something else, in their order.

        ``by_order``: if it has as many labels, and none of these, they are other names for the same ones.

        Raises:
            UserError: if a picture has a label that is not among ``labels``.
        """
        if labels == self.labels:
            return self
        used = {index for target in self.targets for index in target}
        unknown = sorted({self.labels[index] for index in used} - set(labels))
        if by_order and len(unknown) == len(self.labels) == len(labels):  # ImageNet's folders, say
            logger.info("none of the data's labels is known: taking its %d in their own order", len(labels))
            return replace(self, labels=labels)
        if unknown:
            names = ", ".join(unknown[:5])
            raise UserError(f"labels of pictures that {of} does not have: {names}; it has {', '.join(labels[:5])}")
        place = {index: labels.index(self.labels[index]) for index in used}
        targets = IndexLists([place[index] for index in target] for target in self.targets)
        return replace(self, labels=labels, targets=targets)


def in_memory(labels: list[str], files: list[bytes], targets: Sequence[Sequence[int]]) -> Pictures:
    """Pictures that need no reading; their names are numbers."""
    return Pictures(labels, [f"{number:05}" for number in range(len(files))], targets, files.__getitem__)


def encode_png(picture: Pixels) -> bytes:
    """``uint8 [H, W]`` or ``[H, W, 3]`` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def bar(items: Iterable[T], what: str, total: int, *, silent: bool = False) -> Iterable[T]:
    """``items``, with a bar on a terminal that tells how many of ``total`` went through; stdout is for answers."""
    console = Console(stderr=True)
    return track(items, what, total, transient=True, console=console, disable=silent or not console.is_terminal)


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
        parts = (own[start : start + _AT_ONCE] for start in range(0, len(own), _AT_ONCE))  # not a million of futures
        reasons = (reason for part in parts for reason in pool.map(fault, part))
        told = bar(reasons, "looking at every picture", len(own), silent=not world.is_first)
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


def from_paths(labels: list[str], paths: list[Path], targets: list[list[int]]) -> Pictures:
    """Files as they lie on the disk."""
    names = Texts(map(str, paths))
    return Pictures(labels, names, IndexLists(targets), lambda index: Path(names[index]).read_bytes())


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn whatever the content of ``what``, a file or a part of one, may raise into a :class:`UserError` naming it."""
    try:
        yield
    except _FAULTS as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{what}: cannot be read as labelled pictures: {reason}") from error


def split_of(name: str) -> str:
    """``train2017``, ``Training`` and the like to ``train``."""
    letters = name.rstrip("0123456789-_")
    return SPLITS.get(letters.lower(), letters)


def as_list(value: Any) -> list[Any]:
    """A list as it is; nothing for None; anything else alone."""
    return value if isinstance(value, list) else [] if value is None else [value]


def in_order(labels: set[str]) -> list[str]:
    """Numbers by value, all else by the alphabet."""
    return sorted(labels, key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label))
