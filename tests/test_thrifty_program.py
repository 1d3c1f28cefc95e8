"""How the bundled Triton's model process runs a program: on how many threads, and what before the first picture."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """``model.py``, which only Triton's own process can import otherwise; with three threads for models."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield importlib.import_module("export.embedded_model")
    torch.set_num_threads(before)


class _Program:
    """Takes ``picture_s`` a picture, three times that at first, and keeps how it was run."""

    def __init__(self, picture_s: float) -> None:
        self.picture_s = picture_s
        self.runs: list[tuple[int, int]] = []

    def __call__(self, pictures: Tensor) -> tuple[Tensor]:
        time.sleep(len(pictures) * self.picture_s * (1 if self.runs else 3))
        self.runs.append((len(pictures), torch.get_num_threads()))
        return (pictures,)


@pytest.mark.parametrize(("picture_s", "most_alone"), [(0.0006, 4), (0.01, 0)])
def test_a_short_batch_wakes_no_other_thread(embedded: ModuleType, picture_s: float, most_alone: int) -> None:
    program = _Program(picture_s)
    thrifty = embedded.ThriftyProgram(program, 8)
    assert set(program.runs) == {(1, 1)}  # timed on one
    assert most_alone - 1 <= thrifty.most_alone <= most_alone  # a sleep takes a little longer than it is told
    program.runs.clear()
    for count in (64, 1, 64):
        assert len(thrifty(torch.zeros(count, 8, 8, 3, dtype=torch.uint8))[0]) == count
    assert [threads for _, threads in program.runs] == [3, 1 if most_alone else 3, 3]


def test_a_long_program_is_not_timed_for_long(embedded: ModuleType) -> None:
    program = _Program(0.15)
    embedded.ThriftyProgram(program, 8)
    assert len(program.runs) == 1


def test_a_program_that_cannot_run_leaves_the_threads_as_they_are(embedded: ModuleType) -> None:
    def fail(pictures: Tensor) -> tuple[Tensor]:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        embedded.ThriftyProgram(fail, 8)
    assert torch.get_num_threads() == 3


def test_a_gpus_first_pictures_come_in_batches_that_it_has_met(embedded: ModuleType) -> None:
    program = _Program(0)
    embedded.meet_batches(program, 8, 12, torch.device("cpu"))
    assert [count for count, _ in program.runs] == [1, 1, 2, 2, 4, 4, 8, 8, 12, 12]
