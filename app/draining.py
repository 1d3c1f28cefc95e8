"""From the signal that asks for a stop to the moment the port closes.

First the process is not ready and serves on, so that load balancers take it out before anyone is turned away; then
it refuses with 503, so that a client without a load balancer is told; then the server's own handler closes the port
and finishes what is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import Settings

logger = logging.getLogger(__name__)


class Draining:
    """Whether the process drains, and whether it still takes requests."""

    def __init__(self) -> None:
        self.has_begun = False
        self.refuses = False

    @contextmanager
    def on_signals(self, settings: Settings) -> Iterator[None]:
        """Drain when a stop is asked for; a second SIGINT does not wait.

        Called in the event loop's thread; does nothing outside the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
        interrupts = 0

        def stop(number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        def refuse() -> None:
            self.refuses = True
            loop.call_later(settings.drain_refuse_s, stop)

        def drain(number: int, frame: FrameType | None) -> None:
            nonlocal interrupts
            interrupts += number == signal.SIGINT
            if not self.has_begun:
                self.has_begun = True
                logger.info("%s: finishing the requests in flight", signal.Signals(number).name)
                loop.call_soon_threadsafe(loop.call_later, settings.drain_delay_s, refuse)
            elif interrupts > 1:
                stop(number, frame)

        for sig in before:
            signal.signal(sig, drain)
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


class CloseConnections:
    """While draining, every answer is its connection's last; those that idle all the while are closed with the port."""

    def __init__(self, app: ASGIApp, draining: Draining) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining.has_begun:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_last)
