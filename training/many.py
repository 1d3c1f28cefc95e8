"""Long sequences in a few arrays, for pictures by the million.

Processes that load pictures are forked with all of these in memory. Python counts references in the objects
themselves: a list of a million texts that is read would be copied, page by page, into every one of those processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


class Texts(Sequence[str]):
    """Texts, names of files above all."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self._content = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start, end = self._ends[_checked(index, self) : index + 2]
        return os.fsdecode(self._content[start:end])


class IndexLists(Sequence[list[int]]):
    """Lists of indices, most of them of one."""

    def __init__(self, lists: Iterable[Sequence[int]]) -> None:
        kept = [np.asarray(one, np.int64) for one in lists]
        self._content = np.concatenate(kept) if kept else np.empty(0, np.int64)
        self._ends = np.cumsum([0, *map(len, kept)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> list[int]:  # type: ignore[override]
        start, end = self._ends[_checked(index, self) : index + 2]
        found: list[int] = self._content[start:end].tolist()
        return found


class Chosen(Sequence[T]):
    """Some entries of another sequence, in an order of their own."""

    def __init__(self, of: Sequence[T], which: npt.NDArray[np.int64]) -> None:
        self._of, self._which = of, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> T:  # type: ignore[override]
        return self._of[int(self._which[_checked(index, self)])]


def _checked(index: int, of: Sequence[object]) -> int:
    if not 0 <= index < len(of):
        raise IndexError(index)
    return index
