"""What a gateway process asks of Triton: gRPC, asyncio, one channel a process.

Models are loaded and unloaded by :mod:`app.model_control`; shared memory is registered by :mod:`app.shared_memory`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor

from app.errors import (
    DeadlineError,
    ModelNotReadyError,
    ServiceError,
    TritonAnswerError,
    TritonAwayError,
    TritonFullError,
    TritonStoppingError,
)  # fmt: skip
from app.shared_memory import Region, SharedRegions
from app.triton_url import channel_target, is_this_machine
from tresnet.contract import EMBEDDING, HEAT_MAPS, INPUT, MAPPED_LABELS, SCORES, ModelContract

# Calls go to all servers in turn. All of them may be repeated, so one that meets a dying server is tried again at
# another within its deadline; no more than one call in ten, so that retries never add to an overload.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A Triton that comes back is found again at once, not after gRPC's default two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # the time that a connection has to come about, on a busy machine too
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A name is looked up again when a server goes, so that the one in its place is found.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),  # a call that is larger than this is not tried again
    # A client of its own connections, so that a new client means new connections.
    ("grpc.use_local_subchannel_pool", 1),
]
# Silence before a ping, and after it. The last one is for pings that gRPC has sent of itself: another waits for them.
_KEEPALIVE = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
_CONTROL_TIMEOUT_S = 5.0
_LABELS_TIMEOUT_S = 60.0
_REGION_IS_UNKNOWN = re.compile(r"nable to find (\w+ )?shared memory region")
_ROUNDING = 1e-5
"""By how much a sum of float32 scores may pass 1."""

IndexRow = tuple[str, str, str, str]
"""A version in Triton's repository: model, version, state, reason."""


@dataclass(frozen=True)
class Prediction:
    """One picture's answer.

    ``float32 [C]`` scores; if asked for, the ``float32 [D]`` embedding, and the ``float32 [h, w]`` heat maps of the
    best labels by the label's index.
    """

    scores: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32] | None = None
    heat_maps: dict[int, npt.NDArray[np.float32]] | None = None


class TritonClient:
    """Calls that raise only this service's errors."""

    def __init__(self, url: str, *, shared_memory: bool, silence_timeout_s: float = 4.0) -> None:
        """``silence_timeout_s``: a call to a Triton that says nothing at all for so long is sent to another one."""
        self._options = [*_CHANNEL, *((name, int(500 * silence_timeout_s)) for name in _KEEPALIVE)]
        self._control_timeout_s = _CONTROL_TIMEOUT_S + silence_timeout_s
        self.address = channel_target(url)
        self._wants_regions = shared_memory and is_this_machine(url)
        self._channel: grpc.aio.Channel | None = None
        self._stub: service_pb2_grpc.GRPCInferenceServiceStub | None = None
        self._regions: SharedRegions | None = None

    async def start(self) -> None:
        self._channel = grpc.aio.insecure_channel(self.address, options=self._options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        if self._wants_regions:
            self._regions = SharedRegions(self._stub)

    async def close(self) -> None:
        if self._regions is not None:
            with suppress(grpc.RpcError):
                await self._regions.close()
        if self._channel is not None:
            await self._channel.close()

    async def reconnect(self) -> None:
        """Begin anew: a connection may be up and yet dead, waiting for the rest of a frame that never comes."""
        before = self._channel
        await self.start()
        if before is not None:
            await before.close()

    async def clear_away(self) -> None:
        """Have a Triton that has come, or come back, drop what connections before this one left with it."""
        if self._regions is not None:
            with suppress(grpc.RpcError):
                await self._regions.clear_away()

    @property
    def _started(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        if self._stub is None:
            raise RuntimeError("start() was not called")
        return self._stub

    async def check_live(self, timeout_s: float) -> None:
        """Raise unless a Triton says that it lives.

        Raises:
            TritonAwayError: if none is reached, or the one that was asked is stopping.
            DeadlineError: if it does not say anything.
        """
        try:
            answer = await self._started.ServerLive(pb.ServerLiveRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise _translate(error) from error
        if not answer.live:
            raise TritonStoppingError

    async def index(self) -> list[IndexRow]:
        """Every model version in the repository."""
        try:
            answer = await self._started.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=self._control_timeout_s)
        except grpc.RpcError as error:
            raise _translate(error) from error
        return [(model.name, model.version, model.state, model.reason) for model in answer.models]

    async def config(self, name: str) -> model_config_pb2.ModelConfig:
        """The model's configuration, which holds its contract."""
        try:
            answer = await self._started.ModelConfig(pb.ModelConfigRequest(name=name), timeout=self._control_timeout_s)
        except grpc.RpcError as error:
            raise _translate(error) from error
        return answer.config

    async def labels(self, contract: ModelContract) -> list[str]:
        """The labels, from Triton's classification extension, which reads them from the model's label file."""
        side = contract.preprocessing.image_size
        request = _request(contract, 1)
        request.raw_input_contents.append(bytes(side * side * 3))
        scores = request.outputs.add(name=SCORES)
        scores.parameters["classification"].int64_param = contract.num_labels
        try:
            answer = await self._started.ModelInfer(request, timeout=_LABELS_TIMEOUT_S)
        except grpc.RpcError as error:
            raise _translate(error) from error
        labels = [""] * contract.num_labels
        for entry in deserialize_bytes_tensor(answer.raw_output_contents[0]):
            _, index, *label = entry.decode("utf-8", errors="replace").split(":", 2)
            labels[int(index)] = label[0] if label else ""
        return labels

    async def infer(
        self,
        contract: ModelContract,
        pictures: Sequence[npt.NDArray[np.uint8]],
        timeout_s: float,
        *,
        embedding: bool = False,
        heat_maps: bool = False,
        headers: dict[str, str] | None = None,
    ) -> list[Prediction | TritonAnswerError]:
        """One batch of ``uint8 [S, S, 3]`` pictures; for each, in order, its prediction, or why its scores are none.

        ``heat_maps`` only of a model whose contract has them.

        Raises:
            UnavailableError, DeadlineError, TritonAnswerError: nothing else.
        """
        request = _request(contract, len(pictures))
        request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
        request.outputs.add(name=SCORES)
        if embedding:
            request.outputs.add(name=EMBEDDING)
        if heat_maps:
            request.outputs.add(name=HEAT_MAPS)
            request.outputs.add(name=MAPPED_LABELS)
        metadata = tuple(headers.items()) if headers else None
        try:
            answer = await self._infer(contract, request, pictures, timeout_s, metadata)
        except grpc.RpcError as error:
            raise _translate(error) from error
        count = len(pictures)
        scores = _output(answer, SCORES, np.float32, (count, contract.num_labels))
        embeddings: Iterable[Any] = [None] * count
        if embedding:
            embeddings = _output(answer, EMBEDDING, np.float32, (count, contract.embedding_size))
        maps = _heat_maps(answer, contract, count) if heat_maps else [None] * count
        # A comparison with NaN is false, so this refuses it too.
        are_scores = (scores.min(axis=1) >= 0.0) & (scores.max(axis=1) <= 1.0 + _ROUNDING)
        return [
            Prediction(*one) if fine else TritonAnswerError("Triton's answer holds scores outside 0..1")
            for fine, *one in zip(are_scores, scores, embeddings, maps, strict=True)
        ]

    async def _infer(
        self,
        contract: ModelContract,
        request: pb.ModelInferRequest,
        pictures: Sequence[npt.NDArray[np.uint8]],
        timeout_s: float,
        metadata: tuple[tuple[str, str], ...] | None,
    ) -> pb.ModelInferResponse:
        """By shared memory where Triton takes it, else over the wire."""
        size = contract.max_batch_size * contract.preprocessing.image_size**2 * 3
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s

        def infer() -> Awaitable[pb.ModelInferResponse]:
            left_s = max(0.001, deadline - loop.time())
            answer: Awaitable[pb.ModelInferResponse] = self._started.ModelInfer(
                request, timeout=left_s, metadata=metadata
            )
            return answer

        region = await self._regions.borrow(size) if self._regions is not None else None
        if self._regions is not None and region is not None:
            _write(request, pictures, region)
            try:
                return await infer()
            except grpc.RpcError as error:
                if not _REGION_IS_UNKNOWN.search(error.details() or ""):
                    raise
                self._regions.forget()  # a restarted Triton has
                region = None
                request.inputs[0].parameters.clear()
            finally:
                if region is not None:
                    self._regions.give_back(region)
        request.raw_input_contents.append(b"".join(picture.data for picture in pictures))
        return await infer()


def _request(contract: ModelContract, count: int) -> pb.ModelInferRequest:
    side = contract.preprocessing.image_size
    request = pb.ModelInferRequest(model_name=contract.name, model_version=contract.version)
    request.inputs.add(name=INPUT, datatype="UINT8", shape=[count, side, side, 3])
    return request


def _write(request: pb.ModelInferRequest, pictures: Sequence[npt.NDArray[np.uint8]], region: Region) -> None:
    """The pictures into ``region``, one after the other, and where they are into ``request``."""
    end = 0
    for picture in pictures:
        start, end = end, end + picture.nbytes
        region.pixels[start:end] = picture.reshape(-1)
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region.name
    parameters["shared_memory_byte_size"].int64_param = end


def _heat_maps(
    answer: pb.ModelInferResponse, contract: ModelContract, count: int
) -> list[dict[int, npt.NDArray[np.float32]]]:
    form = contract.heat_maps
    assert form is not None  # noqa: S101  (the caller has looked)
    maps = _output(answer, HEAT_MAPS, np.float32, (count, form.labels, form.height, form.width))
    labels = _output(answer, MAPPED_LABELS, np.int64, (count, form.labels))
    return [dict(zip(map(int, own), rows, strict=True)) for own, rows in zip(labels, maps, strict=True)]


T = TypeVar("T", np.float32, np.int64)


def _output(answer: pb.ModelInferResponse, name: str, dtype: type[T], shape: tuple[int, ...]) -> npt.NDArray[T]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    for output, content in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if output.name == name and tuple(output.shape) == shape and len(content) == size:
            return np.frombuffer(content, dtype).reshape(shape)
    raise TritonAnswerError("Triton's answer does not have the shape that the model's contract promises")


def _translate(error: grpc.RpcError) -> ServiceError:
    """One table from Triton's status to ours."""
    status, message = error.code(), str(error.details() or "")
    if status == grpc.StatusCode.DEADLINE_EXCEEDED or "Request timeout expired" in message:
        return DeadlineError()
    if "xceeds maximum queue size" in message:
        return TritonFullError("too many pictures are waiting; try again later")
    is_known = any(words in message for words in ("not ready", "not at ready state"))
    has_died = "Stub process" in message  # the one that runs the model beside the bundled Triton, which starts another
    if has_died or status == grpc.StatusCode.NOT_FOUND or (status == grpc.StatusCode.UNAVAILABLE and is_known):
        return ModelNotReadyError("the model is not ready to answer; try again")
    if status == grpc.StatusCode.CANCELLED or (status == grpc.StatusCode.UNAVAILABLE and "is stopping" in message):
        return TritonStoppingError()
    if status == grpc.StatusCode.UNAVAILABLE:
        return TritonAwayError("the inference server cannot be reached; try again")
    return TritonAnswerError(f"the inference server could not answer: {message[:200]}")
