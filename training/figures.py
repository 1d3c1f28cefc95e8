"""Figures in words: the names that files have for them enter, what people call them leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

NAMES = {
    "images": "pictures",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "map": "mean average precision",
    "cp": "precision at 0.5, mean over labels",
    "cr": "recall at 0.5, mean over labels",
    "cf1": "F1 at 0.5, of these two means",
    "op": "precision at 0.5, over all answers",
    "or": "recall at 0.5, over all answers",
    "of1": "F1 at 0.5, over all answers",
    "f1": "F1 at the fitted thresholds",
    "ece": "calibration error",
    "ece_raw": "calibration error without the fitted temperature",
    "seconds": "seconds for loading and measuring",
}
_SHARES = ("top1", "top5", "map", "f1")


def in_words(figures: Mapping[str, float], names: Sequence[str]) -> str:
    """Those of ``names`` that there are, in a line."""
    return ", ".join(f"{NAMES[name]} {shown(name, figures[name])}" for name in names if name in figures)


def shown(name: str, value: float) -> str:
    """Shares in percent; errors as what they are measured in; not-a-number as nothing to measure."""
    if math.isnan(value):
        return "–"
    if isinstance(value, int) or name == "seconds":
        return f"{value:,}"
    return f"{value:.1%}".replace("%", " %") if name in _SHARES else f"{value:.3f}"


def in_json(figures: Mapping[str, float]) -> str:
    """In a line; ``null`` where there was nothing to measure, which JSON has no number for."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in figures.items()})


def main_figure(figures: Mapping[str, float]) -> str:
    """What the best epoch is chosen by."""
    return "top1" if "top1" in figures else "map"


def duration(seconds: float) -> str:
    """About how long."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
