"""What a run tells while it goes: a bar, a line a step in ``metrics.jsonl``, TensorBoard's events, and curves."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.events import EventFile
from training.figures import NAMES, duration, in_words, main_figure, shown

_DRAW_EVERY_S = 10.0
"""Epochs may be shorter than drawing is worth."""
_TELL_EVERY_S = 30.0
"""Where no bar can be drawn: in a file, or in the log of a job."""
_TELL_FIRST_S = 5.0
"""How long it will take is told sooner."""


class RunLog:
    """The files in the run's folder, and the bar. A context; only the first process of a run writes and speaks."""

    def __init__(
        self, folder: Path, *, step: int, steps_per_epoch: int, epochs: int, batch_size: int, is_first: bool
    ) -> None:
        self.folder, self.path, self.is_first = folder, folder / "metrics.jsonl", is_first
        self.steps_per_epoch, self.epochs, self.batch_size = steps_per_epoch, epochs, batch_size
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not is_first)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            disable=not (is_first and self.console.is_terminal),
        )
        # Counted in pictures, so that the bar's own speed is pictures a second, loading and evaluation included.
        self.bar = self.progress.add_task(
            folder.name, total=steps_per_epoch * epochs * batch_size, completed=step * batch_size, told="starting"
        )
        self.file: IO[str] | None = None
        self.events: EventFile | None = None
        self.first_step = self.last_step = step
        self.validation, self.loss = "", 0.0
        self.tell_at, self.drawn_at = time.monotonic() + _TELL_FIRST_S, -_DRAW_EVERY_S

    def __enter__(self) -> RunLog:
        if self.is_first:
            keep_lines_up_to(self.path, self.first_step)
            self.file = self.path.open("a", encoding="utf-8")
            self.events = EventFile(self.folder, self.first_step)
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()

    def step(self, step: int, figures: dict[str, float]) -> None:
        """After one step."""
        self._write({"step": step, **figures})
        if self.events is not None:
            self.events.write("train", step, figures)
        self.last_step, self.loss = step, figures["loss"]
        self.progress.update(self.bar, completed=step * self.batch_size)
        task = self.progress.tasks[self.bar]
        epoch = min(self.epochs, (step - 1) // self.steps_per_epoch + 1)
        told = f"epoch {epoch}/{self.epochs}  loss {figures['loss']:.3f}{self.validation}"
        if task.speed:
            told += f"  {task.speed:.0f} pictures/s"
        self.progress.update(self.bar, told=told)
        if self.progress.disable and time.monotonic() > self.tell_at and task.time_remaining is not None:
            self.tell_at = time.monotonic() + _TELL_EVERY_S
            self.console.print(f"{told}  about {duration(task.time_remaining)} left")

    def epoch(self, epoch: int, figures: dict[str, float]) -> None:
        """After one epoch, with the figures on the validation pictures."""
        self._write({"epoch": epoch, "at_step": self.last_step, **{f"val_{k}": v for k, v in figures.items()}})
        if not self.is_first:
            return
        main = main_figure(figures)
        words = in_words(figures, [main])
        if f"ema_{main}" in figures:
            words += f" ({shown(main, figures[f'ema_{main}'])} by the weights' moving average)"
        self.console.print(f"epoch {epoch}/{self.epochs}: {words}, training loss {self.loss:.3f}")
        self.validation = f"  {in_words(figures, [main])}"
        if self.events is not None:
            self.events.write("val", self.last_step, figures)
            self.events.flush()
        if time.monotonic() - self.drawn_at > _DRAW_EVERY_S:
            draw_curves(self.folder)
            self.drawn_at = time.monotonic()

    def _write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drop what a run wrote after its last checkpoint, so that no step stands twice; whole or not at all."""
    if not path.exists():
        return
    kept = [line for line in _read(path) if line.get("step", line.get("at_step", 0)) <= step]
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the line that a killed run was writing
            continue
    return lines


def draw_curves(folder: Path) -> None:
    """``metrics.jsonl`` as ``curves.png``, whole at any time: loss by step, and validation figures by epoch."""
    from matplotlib.figure import Figure

    lines = _read(folder / "metrics.jsonl")
    steps = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "epoch" in line]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps])
    left.set(title="training loss", xlabel="step", yscale="log")
    names = [f"val_{prefix}{own}" for prefix in ("", "ema_") for own in ("top1", "top5", "map", "cf1", "of1", "f1")]
    for name in names:
        values = [line[name] for line in epochs if name in line]
        if not values or (name.endswith("top5") and min(values) == 1.0):  # five of at most five labels are always right
            continue
        own = name.removeprefix("val_").removeprefix("ema_")
        label = NAMES[own] + (", moving average" if "ema_" in name else "")
        right.plot([line["epoch"] for line in epochs if name in line], values, marker="o", label=label)
    right.set(title="validation", xlabel="epoch")
    right.legend()
    temporary = folder / ".curves.png"
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(folder / "curves.png")
