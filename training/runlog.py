"""What a run tells while it goes: a progress bar, a line a step in ``metrics.jsonl``, and curves at the end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class RunLog:
    """``metrics.jsonl`` in the run's folder, and the bar. A context; only the first process of a run writes."""

    def __init__(self, folder: Path, step: int, steps: int, is_first: bool) -> None:
        self.path, self.start, self.is_first = folder / "metrics.jsonl", step, is_first
        self.progress = Progress(
            TextColumn(folder.name),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            disable=not is_first,
        )
        self.bar = self.progress.add_task("", total=steps, completed=step, told="")
        self.file: IO[str] | None = None
        self.last_step = step

    def __enter__(self) -> RunLog:
        if self.is_first:
            keep_lines_up_to(self.path, self.start)
            self.file = self.path.open("a", encoding="utf-8")
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.file is not None:
            self.file.close()

    def step(self, step: int, figures: dict[str, float]) -> None:
        """After one step."""
        self._write({"step": step, **figures})
        told = f"loss {figures['loss']:.3f}  {figures['images_per_s']:.0f} images/s"
        self.progress.update(self.bar, completed=step, told=told)
        self.last_step = step

    def epoch(self, epoch: int, figures: dict[str, float]) -> None:
        """After one epoch, with the figures on the validation pictures."""
        self._write({"epoch": epoch, "at_step": self.last_step, **{f"val_{k}": v for k, v in figures.items()}})
        if self.is_first:
            words = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            logger.info("epoch %d: %s", epoch, words)

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
    """``metrics.jsonl`` as ``curves.png``: loss by step, and validation figures by epoch."""
    from matplotlib.figure import Figure

    lines = _read(folder / "metrics.jsonl")
    steps = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "epoch" in line]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps])
    left.set(title="training loss", xlabel="step", yscale="log")
    names = ("top1", "top5", "map", "cf1", "of1", "f1")
    shown = [name for prefix in ("", "ema_") for name in (f"val_{prefix}{own}" for own in names) if name in epochs[-1]]
    for name in shown:
        right.plot([line["epoch"] for line in epochs], [line[name] for line in epochs], marker="o", label=name)
    right.set(title="validation", xlabel="epoch")
    right.legend()
    figure.savefig(folder / "curves.png", dpi=110)
