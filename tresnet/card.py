"""What every model card says, wherever the weights are from: network, preprocessing and labels, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tresnet.checkpoint import ModelFacts
from tresnet.picture import Preprocessing

CARD_FILE = "model_card.md"
_LABELS_SHOWN = 100
_CELL_CHARACTERS = 60

_TASKS = {"classify": "one label wins", "tag": "each label stands by itself"}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers with three places, nothing as a dash."""
    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: object) -> str:
    """``value`` as it may stand in a table, whatever a label is called."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = " ".join(str(value).split())
    text = text if len(text) <= _CELL_CHARACTERS else text[: _CELL_CHARACTERS - 1] + "…"
    return re.sub(r"[\\|`*\[]", r"\\\g<0>", text).replace("<", "&lt;")


def network_section(facts: ModelFacts) -> str:
    """Architecture, task and labels."""
    shown = ", ".join(cell(label) for label in facts.labels[:_LABELS_SHOWN])
    more = f", and {len(facts.labels) - _LABELS_SHOWN} more" if len(facts.labels) > _LABELS_SHOWN else ""
    norm = "in-place activated batch norm" if facts.inplace_abn else "batch norm"
    return (
        "## Model\n\n"
        f"- Architecture: {facts.arch}, {norm}\n"
        f"- Task: {facts.task} ({_TASKS[facts.task]})\n"
        f"- {len(facts.labels)} labels: {shown}{more}\n"
    )


def preprocessing_section(how: Preprocessing) -> str:
    """What happens to a picture before the network sees it."""
    side = how.image_size
    if how.resize_mode == "squash":
        resized = f"stretched to {side}×{side} pixels, whatever its shape"
    else:
        seen = "all of it is seen" if how.crop_pct == 1 else f"{how.crop_pct:.3g} of its side is seen"
        resized = f"its middle square ({seen}) resized to {side}×{side} pixels"
    return (
        "## Preprocessing\n\n"
        f"Turned upright by its EXIF orientation, made RGB, {resized} ({how.interpolation} filter). "
        "The gateway does this by itself.\n"
    )
