"""The GPU benches' results as tables and pictures, and where they are kept.

A result is kept under its date only if a GPU was measured at full size: what a CPU or toy sizes give goes nowhere but
where ``--write`` says.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tresnet.errors import UserError

RESULTS = Path(__file__).parent / "results"


def check_place(wanted: Path | None) -> None:
    """Raise :class:`UserError` unless the table and the picture, named after the JSON, can stand beside it."""
    if wanted is not None and wanted.suffix != ".json":
        raise UserError(f"--write takes a name that ends in .json, not {str(wanted)!r}: .txt and .png come beside it")


def place_for(name: str, content: dict[str, Any], wanted: Path | None) -> Path | None:
    """Where the JSON goes: ``wanted``, else the dated file of a real measurement, else nowhere."""
    if wanted is not None:
        return wanted
    if "tiny" in content or content["device"]["kind"] != "cuda":
        return None
    return RESULTS / f"{content['date']}-{name}.json"


def keeper(name: str, wanted: Path | None) -> Callable[[dict[str, Any]], None]:
    """What keeps the figures there are, where they go in the end, whole at every time."""

    def keep(content: dict[str, Any]) -> None:
        path = place_for(name, content, wanted)
        if path is not None:
            _write_json(path, content)

    return keep


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def write(path: Path, content: dict[str, Any], tables: list[Table]) -> None:
    """The figures at ``path``, and the tables as text beside it."""
    _write_json(path, content)
    with path.with_suffix(".txt").open("w", encoding="utf-8") as file:
        console = Console(file=file, width=160)
        for table in tables:
            console.print(table)


def setting_of(content: dict[str, Any]) -> str:
    """The device, and that the figures are none if they are none."""
    device = content["device"].get("name", content["device"]["kind"])
    return f"{device}, torch {content['torch']}" + (f"; {content['tiny']}" if "tiny" in content else "")


def model_tables(content: dict[str, Any]) -> list[Table]:
    """Networks, the serving program, and the profile if there is one."""
    tables = [_networks(content), _programs(content)]
    if content["targets"]:
        tables.append(_targets(content["targets"]))
    for profiled in content["profile"]:
        if profiled["failed"]:
            continue
        table = Table(title=f"{profiled['network']}, {profiled['what']}, batch {profiled['batch']}")
        _columns(table, "layers", "ms/image", "share")
        for row in profiled["groups"]:
            table.add_row(row["group"], f"{row['ms_per_image']:.4f}", f"{row['share']:.1%}")
        tables.append(table)
    return tables


def _networks(content: dict[str, Any]) -> Table:
    setting = content["setting"]
    table = Table(title=f"{setting['image_size']} px, {setting['autocast']} autocast, {setting_of(content)}")
    _columns(table, "network", "params M", "GMACs", "infer/s", "at batch", "of matrix rate", "of bandwidth", "train/s",
             "largest batch", "MiB kept", "MiB peak", "or why not")  # fmt: skip
    for row in content["networks"]:
        if row["failed"]:
            table.add_row(row["network"], *[""] * 10, row["failed"])
            continue
        share = row["infer_share"]
        table.add_row(
            row["network"], f"{row['parameters'] / 1e6:.1f}", f"{row['multiply_adds'] / 1e9:.2f}",
            f"{statistics.median(row['infer_images_per_s']):.0f}", str(row["infer_batch"]),
            f"{share['of_matrix_rate']:.0%}", f"{share['of_bandwidth']:.0%}",
            f"{statistics.median(row['train_images_per_s']):.0f}",
            f"{'≥ ' if row['limited'] else ''}{row['largest_train_batch']}",
            f"{row['saved_mib']:.1f}", "" if row["peak_train_mib"] is None else f"{row['peak_train_mib']:.1f}", "",
        )  # fmt: skip
    ratios = [f"{what} {own['measured']:g} (paper {own['paper']:g})" for what, own in content["ratios"].items()]
    roof = content["roof"][setting["autocast"]]
    table.caption = (
        f"roof: {roof['teraflops']:.1f} TFLOP/s in {roof['format']}, {roof['gigabytes_per_s']:.0f} GB/s. "
        "≥: the search ended at its limit, not at the memory's. "
        + (f"TResNet-M over ResNet50: {'; '.join(ratios)}" if ratios else "")
    )
    return table


def _targets(targets: list[dict[str, Any]]) -> Table:
    table = Table(title="Targets")
    _columns(table, "ratio", "measured", "at least", "")
    for own in targets:
        table.add_row(own["what"], f"{own['measured']:g}", f"{own['at_least']:g}", "met" if own["met"] else "missed")
    return table


def _programs(content: dict[str, Any]) -> Table:
    setting = content["setting"]
    table = Table(title=f"The serving program, batch {setting['serving_batch']}, {setting['serving_weights']} weights")
    table.caption = "fp32 on a GPU: convolutions in TF32, by torch's default"
    _columns(table, "form", "images/s", "x eager fp32", "build s", "score distance", "top-1 agreement", "or why not")
    for row in content["serving_program"]:
        if row["failed"]:
            table.add_row(row["form"], "", "", "", "", "", row["failed"])
            continue
        ratio = content["serving_program_ratios"].get(row["form"])
        table.add_row(
            row["form"], f"{row['images_per_s']:.0f}", "" if ratio is None else f"{ratio:.2f}", f"{row['build_s']:.1f}",
            f"{row['max_score_distance']:.1e}", f"{row['top1_agreement']:.1%}", "",
        )  # fmt: skip
    return table


def draw_models(content: dict[str, Any], path: Path) -> None:
    """Throughput of the networks, their largest batches, and the serving program's forms."""
    from matplotlib.figure import Figure

    rows = [row for row in content["networks"] if not row["failed"]]
    names = [row["network"] for row in rows]
    figure = Figure(figsize=(15, 1.5 + 0.4 * max(len(names), len(content["serving_program"]))), layout="constrained")
    figure.suptitle(setting_of(content))
    left, middle, right = figure.subplots(1, 3)
    medians = {what: [statistics.median(row[f"{what}_images_per_s"]) for row in rows] for what in ("infer", "train")}
    left.barh([i - 0.2 for i in range(len(names))], medians["infer"], height=0.4, label="inference")
    left.barh([i + 0.2 for i in range(len(names))], medians["train"], height=0.4, label="training")
    left.set(title="images/s", yticks=range(len(names)), yticklabels=names)
    left.legend()
    middle.barh(names, [row["largest_train_batch"] for row in rows])
    middle.set(title="largest training batch")
    done = [row for row in content["serving_program"] if not row["failed"]]
    right.barh([row["form"] for row in done], [row["images_per_s"] for row in done])
    right.set(title="serving program, images/s")
    for axes in (left, middle, right):
        axes.invert_yaxis()
    figure.savefig(path, dpi=110)


def service_table(content: dict[str, Any]) -> Table:
    """The whole path, and what bounds it."""
    bare = content["bare_images_per_s"]
    table = Table(title=f"{content['model']}, {content['picture']} over HTTP, {setting_of(content)}")
    _columns(table, "workers", "connections", "images/s", "of the bare program", "p50 ms", "p99 ms", "CPU ms/image",
             "cores to feed it", "failed")  # fmt: skip
    for row in content["rows"]:
        table.add_row(
            str(row["workers"]), str(row["connections"]), f"{row['images_per_s']:.1f}",
            f"{row['images_per_s'] / bare:.0%}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}",
            f"{sum(row['cpu_ms_per_image'].values()):.2f}", f"{row['cores_to_feed']:.1f}", str(row["failed"]),
        )  # fmt: skip
    gpu = content["decode_on_gpu"]
    best = content.get("best")
    bounds = [f"{name} {rate:g}" for name, rate in best["bounds_images_per_s"].items()] if best else []
    table.caption = (
        (f"bounds, images/s: {'; '.join(bounds)}. Nearest: {best['bound']}. " if best else "")
        + "".join(
            f"Target: {own['what']} at least {own['at_least']:g}: {own['measured']:g}, "
            f"{'met' if own['met'] else 'missed'}. "
            for own in content["targets"]
        )
        + "".join(f"Not measured: {line}. " for line in content["not_measured"])
        + f"The bare program: {bare:.1f} images/s at batch {content['batch']}; {content['cores']} cores are here; "
        f"decoding on one core {content['decode_on_cpu']['images_per_s_and_core']:.0f} images/s, on the GPU "
        + (f"{gpu['images_per_s']:.0f}" if "images_per_s" in gpu else f"not measured: {gpu['skipped']}")
    )
    return table


def draw_service(content: dict[str, Any], path: Path) -> None:
    """Throughput against connections, beside the bare program's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(setting_of(content))
    left, right = figure.subplots(1, 2)
    for workers in dict.fromkeys(row["workers"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["workers"] == workers]
        x = [row["connections"] for row in rows]
        left.plot(x, [row["images_per_s"] for row in rows], marker="o", label=f"{workers} workers")
        right.plot(x, [row["p99_ms"] for row in rows], marker="o", label=f"{workers} workers")
    left.axhline(content["bare_images_per_s"], linestyle="--", label="the bare program")
    left.set(title="images/s", xlabel="connections", ylim=(0, None))
    right.set(title="p99, ms", xlabel="connections", ylim=(0, None))
    left.legend()
    figure.savefig(path, dpi=110)


def _columns(table: Table, first: str, *rest: str) -> None:
    table.add_column(first, no_wrap=True)
    for title in rest:
        table.add_column(title, justify="right")
