"""``tresnet bench``: measurements, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from commands.console import console, fails_with_2, out

bench = typer.Typer(help="Measure speed, size and memory.", no_args_is_help=True)


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
                raise UserError(f"timm's networks need: pip install 'tresnet-serving[dev]' ({error})") from error
        hardware = torch.cuda.get_device_name() if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        setting = f"{image_size} px, float32, batch {batch_size}, {hardware}"
        content = {"setting": setting, "torch": torch.__version__, "memory_gib": memory_gib, "rows": as_plain(rows)}
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
