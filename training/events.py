"""TensorBoard's own log beside ``metrics.jsonl``: figures enter, one event file a start of the run leaves.

``tensorboard --logdir runs`` draws it. Written in the training thread, so that a full disk is an error there and then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

_FLUSH_EVERY_S = 15.0


class EventFile:
    """Open from its making until :meth:`close`; what older files in ``folder`` say of later steps no longer counts."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = EventsWriter(str(folder / "events"), f".{step}")
        self._writer.write_event(
            Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
        )
        self._flushed_at = time.monotonic()

    def write(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        """``figures`` at ``step``, as ``group/NAME``."""
        for name, value in figures.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(f"{group}/{name}", value)))
        if time.monotonic() - self._flushed_at > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """To the disk, for a TensorBoard that watches."""
        self._writer.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        self._writer.close()
