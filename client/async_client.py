"""The client for asyncio; many pictures are asked about by a few tasks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from client.answers import Answer, Result, ServedModel
from client.conversation import Conversation, Outcome, Pause, Reply, Send, ask, ask_each, ask_models, ask_ready
from client.http import http_options, http_request
from client.patience import Patience
from client.requests import Batch, ClassifyParameters, Parameters, Picture, TagParameters, batches, one_batch
from client.streams import Stop

T = TypeVar("T")


class AsyncClient:
    """As :class:`client.Client`, method for method; close it, or use it in ``async with``."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        patience: Patience = Patience(),  # noqa: B008
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._http = httpx.AsyncClient(**http_options(url, api_key, verify))
        self._patience = patience

    async def classify(
        self, pictures: Picture | Sequence[Picture], **parameters: Unpack[ClassifyParameters]
    ) -> Answer:  # fmt: skip
        """The best labels of one picture or of several, in one request."""
        batch = await asyncio.to_thread(one_batch, pictures)
        return await self._drive(ask("/classify", batch, parameters, self._patience))

    async def tag(self, pictures: Picture | Sequence[Picture], **parameters: Unpack[TagParameters]) -> Answer:
        """The tags of one picture or of several."""
        batch = await asyncio.to_thread(one_batch, pictures)
        return await self._drive(ask("/tag", batch, parameters, self._patience))

    def classify_each(
        self,
        pictures: Iterable[Picture],
        *,
        batch_size: int = 16,
        connections: int = 4,
        ordered: bool = True,
        **parameters: Unpack[ClassifyParameters],
    ) -> AsyncIterator[Result]:
        """Any number of pictures: a result for each, as soon as it is there."""
        return self._each("/classify", pictures, batch_size, connections, ordered, parameters)

    def tag_each(
        self,
        pictures: Iterable[Picture],
        *,
        batch_size: int = 16,
        connections: int = 4,
        ordered: bool = True,
        **parameters: Unpack[TagParameters],
    ) -> AsyncIterator[Result]:
        """As :meth:`classify_each`, for tags."""
        return self._each("/tag", pictures, batch_size, connections, ordered, parameters)

    async def models(self) -> list[ServedModel]:
        """The models that are ready."""
        return await self._drive(ask_models(self._patience))

    async def wait_ready(self) -> dict[str, Any]:
        """Return once the gateway is ready, with what it says of its models; raises after the client's patience."""
        return await self._drive(ask_ready(self._patience))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _each(
        self,
        path: str,
        pictures: Iterable[Picture],
        batch_size: int,
        connections: int,
        ordered: bool,
        parameters: Parameters,
    ) -> AsyncIterator[Result]:
        if connections < 1:
            raise ValueError("connections must be at least 1")
        stop = Stop()
        waiting = batches(pictures, batch_size)
        places = asyncio.Semaphore(connections)

        async def one(batch: Batch) -> list[Result]:
            async with places:
                with stop.on_failure():
                    return await self._drive(ask_each(path, batch, parameters, self._patience))

        calls: list[asyncio.Task[list[Result]]] = []
        try:
            while True:
                while not stop.has_failed and len(calls) < 2 * connections:
                    batch = await asyncio.to_thread(next, waiting, None)
                    if batch is None:
                        break
                    calls.append(asyncio.create_task(one(batch)))
                if not calls:
                    break
                await asyncio.wait(calls[:1] if ordered else calls, return_when=asyncio.FIRST_COMPLETED)
                done = calls[:1] if ordered else [call for call in calls if call.done()]
                calls = [call for call in calls if call not in done]
                for call in done:
                    if call.exception() is None:
                        for result in call.result():
                            yield result
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        stop.raise_failure()

    async def _drive(self, conversation: Conversation[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = conversation.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            outcome = await self._perform(step)

    async def _perform(self, step: Send | Pause) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            response = await self._http.send(http_request(self._http, step))
        except httpx.RequestError as error:
            return error
        return Reply(response.status_code, response.headers, response.content)
