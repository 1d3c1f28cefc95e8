"""Do heat maps lie on what they explain? The share of their weight inside the drawn digit's square.

``python -m benchmarks.heat_maps`` asks a running gateway (``make serve``) to tag the held-out canvases of
``multidigits`` with ``explain=true`` and lays each given tag's map over the squares in which that digit was drawn. A
map's weight is its positive part, spread evenly over each of its cells; a map without any counts as a miss. A tag that
is not on the canvas has no square and is left out. It writes ``benchmarks/results/heat_maps.json``; a minute on two CPU
cores.
"""

from __future__ import annotations

import base64
import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import numpy.typing as npt
import typer

from benchmarks.serving.report import machine
from training.demos import DIGIT_LABELS, Canvas, held_out_canvases
from training.pictures import encode_png

RESULT = Path(__file__).parent / "results" / "heat_maps.json"
_A_REQUEST = 10


def main(
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8080",
    model: Annotated[str, typer.Option(help="A model of the recipe multidigits.")] = "multidigits",
    seed: Annotated[int, typer.Option(help="The seed that the model was trained with.")] = 0,
    result: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULT,
) -> None:
    """Ask, measure, print and write."""
    _, canvases = held_out_canvases(seed)
    shares: list[float] = []
    even: list[float] = []
    for start in range(0, len(canvases), _A_REQUEST):
        part = canvases[start : start + _A_REQUEST]
        for (pixels, digits), answer in zip(part, _ask(url, model, part), strict=True):
            for tag in answer["tags"]:
                squares = [digit.box for digit in digits if DIGIT_LABELS[digit.label] == tag["label"]]
                if squares:
                    inside = np.zeros(pixels.shape, bool)
                    for left, top, right, bottom in squares:
                        inside[top:bottom, left:right] = True
                    shares.append(share_inside(np.array(tag["heat_map"]), answer["heat_map_box"], inside))
                    even.append(float(inside.mean()))
    figures = {
        "what": "share of a heat map's positive weight inside the square of the digit that it explains",
        "command": f"python -m benchmarks.heat_maps --seed {seed}",
        "machine": machine(),
        "canvases": len(canvases),
        "tags": len(shares),
        "mean_share": round(statistics.mean(shares), 4),
        "median_share": round(statistics.median(shares), 4),
        "tags_above_half": round(statistics.mean(share > 0.5 for share in shares), 4),
        "mean_share_of_an_even_map": round(statistics.mean(even), 4),
    }
    result.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(figures, indent=1))


def _ask(url: str, model: str, canvases: list[Canvas]) -> list[dict[str, Any]]:
    images = [{"b64": base64.b64encode(encode_png(pixels)).decode()} for pixels, _ in canvases]
    body = {"model": model, "images": images, "parameters": {"explain": True}}
    answer = httpx.post(f"{url}/tag", json=body, timeout=60)
    answer.raise_for_status()
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def share_inside(heat_map: npt.NDArray[Any], box: list[float], inside: npt.NDArray[np.bool_]) -> float:
    """The share of the positive weight of ``[h, w]`` over ``box`` that lies on the true pixels of ``inside``."""
    height, width = inside.shape
    left, top, right, bottom = box
    rows = ((np.arange(height) + 0.5 - top) / (bottom - top) * heat_map.shape[0]).astype(int)
    columns = ((np.arange(width) + 0.5 - left) / (right - left) * heat_map.shape[1]).astype(int)
    weight = np.maximum(heat_map, 0)[rows][:, columns]
    return float(weight[inside].sum() / weight.sum()) if weight.any() else 0.0


if __name__ == "__main__":
    typer.run(main)
