"""``tresnet bench``: measurements, as a table and as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from commands.bench_gpu import gpu_models, gpu_service
from commands.console import console, fails_with_2, out

bench = typer.Typer(help="Measure speed, size and memory.", no_args_is_help=True)
bench.command()(gpu_models)
bench.command()(gpu_service)


@bench.callback()
def _group() -> None:
    """Measure speed, size and memory."""


@bench.command()
def ablation(
    networks: Annotated[
        str | None, typer.Option(help="Only these, split by commas, as the table names them.", metavar="NAMES")
    ] = None,
    image_size: Annotated[int, typer.Option(min=32, help="Side of the pictures, in pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(min=2, help="Pictures in a timed step.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; the median counts.")] = 3,
    memory_gib: Annotated[float, typer.Option(min=1, help="Memory that the largest batch must fit into.")] = 16.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    write: Annotated[Path | None, typer.Option(help="Write the figures here, as JSON.", metavar="FILE")] = None,
) -> None:
    """TResNet-M without each of the paper's refinements, beside timm's networks of its class."""
    with fails_with_2():
        import torch

        from benchmarks.ablation import as_plain, run_ablation
        from benchmarks.serving.report import machine
        from tresnet.devices import choose_device
        from tresnet.errors import UserError

        where = choose_device(device)
        names = [name.strip() for name in networks.split(",")] if networks else None
        with console.status("") as status:
            try:
                rows = run_ablation(
                    names=names,
                    image_size=image_size,
                    batch_size=batch_size,
                    rounds=rounds,
                    memory_gib=memory_gib,
                    device=where,
                    tell=status.update,
                )
            except KeyError as error:
                raise UserError(f"there is no network {error.args[0]!r} in this comparison") from error
            except ImportError as error:
                raise UserError(str(error)) from error
        hardware = torch.cuda.get_device_name() if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        setting = f"{image_size} px, float32, batch {batch_size}, {hardware}"
        content = {
            "setting": setting,
            "how": f"speeds: median of {rounds} rounds, in each of which every network has its turn; "
            "worth nothing alone, only against each other, and that only if the load is this measurement's own",
            **machine(where),
            "load_at_the_end": round(os.getloadavg()[1], 1),
            "memory_gib": memory_gib,
            "rows": as_plain(rows),
        }
        if write is not None:
            write.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    table = Table(title=setting)
    table.caption = (
        "params in millions; GMACs a picture; MiB kept a picture for the backward pass; the batch that then fits into "
        f"{memory_gib:g} GiB with weights and optimizer; pictures a second in training and in inference"
    )
    table.add_column("network", no_wrap=True)
    for title in ("params", "GMACs", "MiB", "batch", "train", "infer"):
        table.add_column(title, justify="right")
    for row in rows:
        figures = (row.saved_mib, row.largest_batch, row.train_images_per_s, row.infer_images_per_s)
        size = (f"{row.parameters / 1e6:.1f}", f"{row.multiply_adds / 1e9:.2f}")
        table.add_row(row.network, *size, *map(str, figures))
    out.print(table)


@bench.command()
def serving(
    workloads: Annotated[str, typer.Option(help="Which, of a (TResNet-M), b (one convolution), c (12 megapixels), "
                                                "d (eight pictures a request), e (448 px).")] = "a,b,c,d,e",
    servers: Annotated[str, typer.Option(help="Which, split by commas.")] = "ours,in process,LitServe,BentoML,mosec",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each server; the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Of one turn.")] = 8.0,
    latency: Annotated[bool, typer.Option(help="Also measure latency at 70 % of each server's capacity.")] = True,
    write: Annotated[Path | None, typer.Option(help="Write the figures here, as JSON.", metavar="FILE")] = None,
) -> None:  # fmt: skip
    """The same TorchScript file behind this project and behind LitServe, BentoML, mosec and a plain FastAPI route."""
    with fails_with_2():
        from benchmarks.serving.compare import compare
        from benchmarks.serving.report import machine, table_of
        from tresnet.errors import UserError

        results = []
        with console.status("") as status:
            for key in workloads.split(","):
                try:
                    results.append(
                        compare(
                            key.strip(), names=servers.split(","), rounds=rounds, seconds=seconds, latency=latency,
                            tell=status.update,
                        )
                    )  # fmt: skip
                except KeyError as error:
                    raise UserError(f"there is no workload or server {error.args[0]!r} here") from error
                out.print(table_of(results[-1]))
        if write is not None:
            content = {**machine(), "rounds": rounds, "seconds": seconds, "workloads": results}
            write.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@bench.command()
def growth(
    write: Annotated[Path, typer.Argument(help="The figures go here, and the picture beside it.", metavar="JSON")],
    workload: Annotated[str, typer.Option(help="As of `tresnet bench serving`.")] = "b",
    rounds: Annotated[int, typer.Option(min=1, help="Of every point, up and down in turns; the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Of one turn of one point.")] = 4.0,
) -> None:
    """Throughput of the gateway against concurrency 1 to 512 and against workers."""
    with fails_with_2():
        from benchmarks.serving.growth import draw_growth, measure_growth
        from benchmarks.serving.report import machine

        with console.status("") as status:
            content = machine() | measure_growth(workload, rounds=rounds, seconds=seconds, tell=status.update)
        write.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draw_growth(content, write.with_suffix(".png"))
    out.print(f"{write}, {write.with_suffix('.png')}")
