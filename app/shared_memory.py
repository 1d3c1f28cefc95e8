"""Batches in memory that a Triton on this machine reads itself, so that pixels do not travel through gRPC.

A region is made, registered at Triton, and unlinked at once: it lives as long as the two processes have it mapped, and
a gateway that is killed leaves no file behind. A Triton that was restarted has forgotten its regions, one in another
container may not be able to open them: the caller then sends the pixels themselves.
"""

from __future__ import annotations

import logging
import mmap
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

logger = logging.getLogger(__name__)

_FOLDER = Path("/dev/shm")  # noqa: S108  (POSIX shared memory is there, and nowhere else)
_PREFIX = "tresnet-"
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Region:
    """``pixels``: ``uint8 [bytes]``, which Triton knows as ``name``."""

    name: str
    pixels: npt.NDArray[np.uint8]


class SharedRegions:
    """Regions of a Triton on this machine, lent to one batch each.

    A batch that ran out of time may be read by Triton after its region was lent on: the answer to it is
    awaited by nobody.
    """

    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
        self._stub = stub
        self._free: dict[int, list[Region]] = {}
        self._is_refused = False

    async def borrow(self, size: int) -> Region | None:
        """A region of ``size`` bytes for one batch, or None if Triton does not take any."""
        if self._is_refused:
            return None
        free = self._free.setdefault(size, [])
        return free.pop() if free else await self._register(size)

    def give_back(self, region: Region) -> None:
        self._free.setdefault(region.pixels.nbytes, []).append(region)

    def forget(self) -> None:
        """Triton does not know the regions any more."""
        self._free = {}

    async def clear_away(self) -> None:
        """Have Triton drop the regions of gateways on this machine that have died."""
        status = await self._stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), timeout=_TIMEOUT_S)
        for name in status.regions:
            if name.startswith(_PREFIX) and _is_of_the_dead(name):
                await self._unregister(name)

    async def close(self) -> None:
        """Have Triton drop what is free; the rest goes with :meth:`clear_away` of another gateway."""
        for regions in self._free.values():
            for region in regions:
                await self._unregister(region.name)

    async def _register(self, size: int) -> Region | None:
        name = f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
        path = _FOLDER / name
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)  # a full /dev/shm is an error now, not a SIGBUS later
                memory = mmap.mmap(descriptor, size)
                request = pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
                await self._stub.SystemSharedMemoryRegister(request, timeout=_TIMEOUT_S)
            finally:
                os.close(descriptor)
                path.unlink()
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                self._refuse(str(error.details()))
            return None
        except OSError as error:
            self._refuse(str(error))
            return None
        return Region(name, np.frombuffer(memory, np.uint8))

    def _refuse(self, reason: str) -> None:
        self._is_refused = True
        logger.info("no shared memory with the inference server, pixels go over the wire: %s", reason)

    async def _unregister(self, name: str) -> None:
        await self._stub.SystemSharedMemoryUnregister(
            pb.SystemSharedMemoryUnregisterRequest(name=name), timeout=_TIMEOUT_S
        )


def _is_of_the_dead(name: str) -> bool:
    """A region with this process's own number is of one that had the number before."""
    pid = name.removeprefix(_PREFIX).partition("-")[0]
    return pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists()
