"""The client for programs without asyncio; many pictures are asked about by a few threads."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from client.answers import Answer, Result, ServedModel
from client.conversation import Conversation, Outcome, Pause, Reply, Send, ask, ask_each, ask_models, ask_ready
from client.errors import ClientError
from client.http import http_options, http_request
from client.patience import Patience
from client.requests import Batch, ClassifyParameters, Parameters, Picture, TagParameters, batches, one_batch
from client.streams import Stop

T = TypeVar("T")


class Client:
    """Asks a gateway. One client may be used by several threads; close it, or use it in ``with``."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        patience: Patience = Patience(),  # noqa: B008
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._http = httpx.Client(**http_options(url, api_key, verify))
        self._patience = patience

    def classify(
        self, pictures: Picture | Sequence[Picture], **parameters: Unpack[ClassifyParameters]
    ) -> Answer:  # fmt: skip
        """The best labels of one picture or of several, in one request.

        Raises:
            ClientError: if no picture is answered. One that fails beside others has its ``error`` in its result.
        """
        return self._drive(ask("/classify", one_batch(pictures), parameters, self._patience))

    def tag(self, pictures: Picture | Sequence[Picture], **parameters: Unpack[TagParameters]) -> Answer:
        """The tags of one picture or of several, as :meth:`classify`."""
        return self._drive(ask("/tag", one_batch(pictures), parameters, self._patience))

    def classify_each(
        self,
        pictures: Iterable[Picture],
        *,
        batch_size: int = 16,
        connections: int = 4,
        ordered: bool = True,
        **parameters: Unpack[ClassifyParameters],
    ) -> Iterator[Result]:
        """Any number of pictures, in requests of ``batch_size``: a result for each, as soon as it is there.

        In order, or as they are answered; ``id`` is the picture's place. Files are read as they are needed.

        Raises:
            ClientError: if the gateway is away, or refuses the request; after all results that were there.
        """
        return self._each("/classify", pictures, batch_size, connections, ordered, parameters)

    def tag_each(
        self,
        pictures: Iterable[Picture],
        *,
        batch_size: int = 16,
        connections: int = 4,
        ordered: bool = True,
        **parameters: Unpack[TagParameters],
    ) -> Iterator[Result]:
        """As :meth:`classify_each`, for tags."""
        return self._each("/tag", pictures, batch_size, connections, ordered, parameters)

    def models(self) -> list[ServedModel]:
        """The models that are ready."""
        return self._drive(ask_models(self._patience))

    def wait_ready(self) -> dict[str, Any]:
        """Return once the gateway is ready, with what it says of its models; raises after the client's patience."""
        return self._drive(ask_ready(self._patience))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _each(
        self,
        path: str,
        pictures: Iterable[Picture],
        batch_size: int,
        connections: int,
        ordered: bool,
        parameters: Parameters,
    ) -> Iterator[Result]:
        stop, left = Stop(), Event()
        waiting = batches(pictures, batch_size)

        def one(batch: Batch) -> list[Result]:
            with stop.on_failure():
                return self._drive(ask_each(path, batch, parameters, self._patience), left)

        pool = ThreadPoolExecutor(connections, thread_name_prefix="tresnet-client")
        calls: list[Future[list[Result]]] = []
        try:
            while True:
                while not stop.has_failed and len(calls) < 2 * connections and (batch := next(waiting, None)):
                    calls.append(pool.submit(one, batch))
                if not calls:
                    break
                wait(calls[:1] if ordered else calls, return_when=FIRST_COMPLETED)
                done = calls[:1] if ordered else [call for call in calls if call.done()]
                calls = [call for call in calls if call not in done]
                for call in done:
                    if call.exception() is None:
                        yield from call.result()
        finally:
            left.set()
            pool.shutdown(wait=False, cancel_futures=True)  # a caller who leaves early does not wait for answers
        stop.raise_failure()

    def _drive(self, conversation: Conversation[T], left: Event | None = None) -> T:
        """The conversation's answer; ``left`` is set when nobody waits for it any more."""
        left = left or Event()
        outcome: Outcome = None
        while True:
            if left.is_set():
                raise ClientError("nobody waits for the answer any more")
            try:
                step = conversation.send(outcome)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            outcome = self._perform(step, left)

    def _perform(self, step: Send | Pause, left: Event) -> Outcome:
        if isinstance(step, Pause):
            left.wait(step.seconds)
            return None
        try:
            response = self._http.send(http_request(self._http, step))
        except httpx.RequestError as error:
            return error
        return Reply(response.status_code, response.headers, response.content)
