"""One process or many: who is in this run, and how they put their parts together.

``torchrun --nproc-per-node 8 --no-python tresnet train …`` starts a process for each GPU and says so in the
environment, on one machine or on several; without it a run is one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from tresnet.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among those of the run."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is this process that writes files and speaks."""
        return self.rank == 0

    def gather(self, part: Any) -> list[Any]:
        """Every process's ``part``, by rank, in every process."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts

    def of_first(self, read: Callable[[], T]) -> T:
        """What ``read`` gives in the first process, whose disk the others may not see, in every process.

        Raises:
            UserError, OSError: in every process what ``read`` raises in the first.
        """
        if self.size == 1:
            return read()
        told: list[Any] = [None]
        if self.is_first:
            try:
                told = [read()]
            except (UserError, OSError) as error:
                told = [error]
        dist.broadcast_object_list(told)
        if isinstance(told[0], (UserError, OSError)):
            raise told[0]
        return told[0]  # type: ignore[no-any-return]

    def any(self, here: bool) -> bool:
        """Whether it is so in one process at least."""
        if self.size == 1:
            return here
        flag = torch.tensor(int(here))  # on the CPU: to learn it from a GPU would wait for all that was given to it
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def share_buffers(self, model: nn.Module) -> None:
        """The first process's running statistics, in every process."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The run's processes, connected as long as the context lasts: NCCL for what lies on GPUs, gloo for the rest."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
