"""The one place that speaks to Triton: gRPC, asyncio, one client a process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient import grpc as triton_messages
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException

from app.errors import DeadlineError, ServiceError, TritonAnswerError, UnavailableError
from app.triton_url import channel_target
from tresnet.contract import EMBEDDING, INPUT, SCORES, ContractError, ModelContract, read_contract

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
]
_CONTROL_TIMEOUT_S = 5.0
_LABELS_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Prediction:
    """One picture's answer: ``float32 [C]`` scores and ``float32 [D]`` embedding."""

    scores: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]


class TritonClient:
    """Calls that raise only this service's errors."""

    def __init__(self, url: str) -> None:
        self.address = channel_target(url)
        self._client: aio.InferenceServerClient | None = None

    async def start(self) -> None:
        self._client = aio.InferenceServerClient(self.address, channel_args=_CHANNEL)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    @property
    def _started(self) -> aio.InferenceServerClient:
        if self._client is None:
            raise RuntimeError("start() was not called")
        return self._client

    async def is_live(self) -> bool:
        """Whether Triton answers at all."""
        try:
            return bool(await self._started.is_server_live(client_timeout=_CONTROL_TIMEOUT_S))
        except (InferenceServerException, grpc.RpcError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                raise
            return False

    async def index(self) -> list[tuple[str, str, str, str]]:
        """Every model version in the repository: name, version, state, reason."""
        try:
            answer = await self._started.get_model_repository_index(client_timeout=_CONTROL_TIMEOUT_S)
        except InferenceServerException as error:
            raise _translate(error) from error
        return [(model.name, model.version, model.state, model.reason) for model in answer.models]

    async def contract(self, name: str, version: str) -> ModelContract:
        """The contract from Triton's model-configuration call.

        Raises:
            TritonAnswerError: if it is not one that this service can serve.
        """
        try:
            answer = await self._started.get_model_config(name, version, client_timeout=_CONTROL_TIMEOUT_S)
            return read_contract(answer.config, version)
        except InferenceServerException as error:
            raise _translate(error) from error
        except ContractError as error:
            raise TritonAnswerError(str(error)) from error

    async def labels(self, contract: ModelContract) -> list[str]:
        """The labels, from Triton's classification extension, which reads them from the model's label file."""
        side = contract.preprocessing.image_size
        output = triton_messages.InferRequestedOutput(SCORES, class_count=contract.num_labels)
        try:
            answer = await self._started.infer(
                contract.name,
                [_input(np.zeros((1, side, side, 3), np.uint8))],
                model_version=contract.version,
                outputs=[output],
                client_timeout=_LABELS_TIMEOUT_S,
            )
        except InferenceServerException as error:
            raise _translate(error) from error
        labels = [""] * contract.num_labels
        for entry in answer.as_numpy(SCORES).reshape(-1):
            _, index, *label = entry.decode("utf-8").split(":", 2)
            labels[int(index)] = label[0] if label else ""
        return labels

    async def infer(
        self,
        contract: ModelContract,
        pictures: Sequence[npt.NDArray[np.uint8]],
        timeout_s: float,
        headers: dict[str, str] | None = None,
    ) -> list[Prediction]:
        """One batch of ``uint8 [S, S, 3]`` pictures; one prediction a picture, in order.

        Raises:
            UnavailableError, DeadlineError, TritonAnswerError: nothing else.
        """
        batch = np.stack(pictures)  # [N, S, S, 3]
        try:
            answer = await self._started.infer(
                contract.name,
                [_input(batch)],
                model_version=contract.version,
                timeout=max(1, int(timeout_s * 1e6)),
                client_timeout=timeout_s,
                headers=headers,
            )
        except InferenceServerException as error:
            raise _translate(error) from error
        scores, embeddings = answer.as_numpy(SCORES), answer.as_numpy(EMBEDDING)
        expected = (len(batch), contract.num_labels), (len(batch), contract.embedding_size)
        if scores is None or embeddings is None or (scores.shape, embeddings.shape) != expected:
            raise TritonAnswerError("Triton's answer does not have the shape that the model's contract promises")
        if not (np.isfinite(scores).all() and scores.min() >= 0.0 and scores.max() <= 1.0 + 1e-5):
            raise TritonAnswerError("Triton's answer holds scores outside 0..1")
        return [Prediction(score, embedding) for score, embedding in zip(scores, embeddings, strict=True)]


def _input(batch: npt.NDArray[np.uint8]) -> triton_messages.InferInput:
    tensor = triton_messages.InferInput(INPUT, list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(batch)
    return tensor


def _translate(error: InferenceServerException) -> ServiceError:
    """One table from Triton's status to ours."""
    status, message = str(error.status() or ""), str(error.message() or "")
    if "DEADLINE_EXCEEDED" in status or "Deadline Exceeded" in message or "timeout" in message.lower():
        return DeadlineError()
    if "UNAVAILABLE" in status and "not ready" not in message and "xceeds maximum queue size" not in message:
        return UnavailableError("triton_unavailable", "the inference server cannot be reached; try again")
    if "UNAVAILABLE" in status or "NOT_FOUND" in status:
        return UnavailableError("model_not_ready", "the model is not ready to answer; try again")
    if "CANCELLED" in status:
        return UnavailableError("triton_unavailable", "the inference server closed the connection; try again")
    return TritonAnswerError(f"the inference server could not answer: {message[:200]}")
