"""A TCP proxy that can be told to refuse, cut, delay and garble what goes through it."""

from __future__ import annotations

import asyncio
import os
import threading
from types import TracebackType
from typing import Literal

Direction = Literal["to server", "to client"]


class TcpProxy:
    """Listens on a free port of 127.0.0.1 as long as its context lasts; its switches may be set from any thread."""

    def __init__(self, target: str) -> None:
        self._target = target.split(":")
        self.address = ""
        self.refuses = False
        self.delay_s = 0.0
        self.garbles: Direction | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._meet, "127.0.0.1", 0), self._loop)
        self._server = listening.result(10)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Cut every connection, in whatever it was carrying."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self.refuses:
                there, back = await asyncio.open_connection(*self._target)
                self._writers.add(back)
                await asyncio.gather(
                    self._pass_on(reader, back, "to server"), self._pass_on(there, writer, "to client")
                )
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction) -> None:
        try:
            while data := await reader.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.garbles == way:
                    data = os.urandom(len(data))
                writer.write(data)
                await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
