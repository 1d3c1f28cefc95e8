"""``tresnet bench gpu-models`` and ``gpu-service``: measurements for a GPU; ``--tiny`` shows that they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from commands.console import console, fails_with_2, out
from tresnet.terms import PRECISIONS, Norm, Precision

Write = Annotated[
    Path | None,
    typer.Option(
        help="Write the figures here, as JSON, with a table and a picture beside it. By default a GPU's figures go to "
        "benchmarks/results under the date, and others nowhere.",
        metavar="FILE",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="Toy sizes, on any device: shows that it runs, and nothing else.")]
Deadline = Annotated[
    float | None, typer.Option(help="Begin nothing after so many seconds; what there is then is kept.", min=0)
]


def gpu_models(
    device: Device = "auto",
    tiny: Tiny = False,
    networks: Annotated[
        str | None, typer.Option(help="Only these, split by commas; '' for none.", metavar="NAMES")
    ] = None,
    programs: Annotated[
        str | None,
        typer.Option(help="Only these forms of the serving program, split by commas; '' for none.", metavar="NAMES"),
    ] = None,
    precisions: Annotated[str, typer.Option(help="Of the serving program, split by commas.")] = ",".join(PRECISIONS),
    precision: Annotated[Precision, typer.Option(help="Of the networks, by autocast.")] = "fp16",
    norm: Annotated[Norm, typer.Option(help="InPlace-ABN of the networks.")] = "own",
    image_size: Annotated[int, typer.Option(min=32, help="Side of the pictures, in pixels.")] = 224,
    batch_limit: Annotated[int, typer.Option(min=2, help="No batch is larger.")] = 8192,
    serving_batch: Annotated[int, typer.Option(min=1, help="Pictures in a run of the serving program.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns; the median counts.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of one turn of one network.")] = 2.0,
    memory_gib: Annotated[
        float | None, typer.Option(min=1, help="What the networks may use of the GPU's; 16 is that of the paper's.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of the serving program, for its top-1 agreement.", metavar="CHECKPOINT")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Networks whose time is split up by kind of layer, split by commas.", metavar="NAMES")
    ] = "",
    deadline_s: Deadline = None,
    write: Write = None,
) -> None:
    """TResNet, its ablation and timm's networks on a GPU, and the serving program in every form."""
    with fails_with_2():
        from benchmarks.gpu_models import Options, run_gpu_models
        from benchmarks.gpu_report import check_place, draw_models, keeper, model_tables
        from tresnet.devices import choose_device
        from tresnet.errors import UserError
        from tresnet.inplace_abn import resolve_norm

        check_place(write)
        where = choose_device(device)
        options = Options(
            device=where,
            networks=_names(networks),
            programs=_names(programs),
            precisions=tuple(_precision(name) for name in precisions.split(",")),
            precision=precision,
            norm=resolve_norm(norm, where),
            image_size=image_size,
            batch_limit=batch_limit,
            serving_batch=serving_batch,
            rounds=rounds,
            seconds=seconds,
            memory_gib=memory_gib,
            checkpoint=checkpoint,
            deadline_s=deadline_s,
            profile=tuple(_names(profile) or ()),
        )
        with console.status("") as status:
            try:
                content = run_gpu_models(
                    options.made_tiny() if tiny else options, status.update, _say, keeper("gpu-models", write)
                )
            except KeyError as error:
                raise UserError(f"there is no network or form {error.args[0]!r} in this comparison") from error
        _show("gpu-models", content, model_tables(content), draw_models, write)


def gpu_service(
    device: Device = "auto",
    tiny: Tiny = False,
    model: Annotated[str, typer.Option(help="An architecture, or one_convolution: the serving alone.")] = "tresnet_m",
    precision: Annotated[Precision, typer.Option(help="Of the serving program.")] = "fp16",
    image_size: Annotated[int, typer.Option(min=32, help="Side of the network's input, in pixels.")] = 224,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Most pictures in one run.")] = 64,
    workers: Annotated[str, typer.Option(help="Gateway processes, each number once, split by commas.")] = "1,4,8",
    connections: Annotated[str, typer.Option(help="Clients, each number once, split by commas.")] = "16,64,256",
    seconds: Annotated[float, typer.Option(min=1, help="Of one measurement.")] = 8.0,
    deadline_s: Deadline = None,
    write: Write = None,
) -> None:
    """The gateway and the bundled Triton on a GPU, from JPEG bytes over HTTP, beside the bare serving program."""
    with fails_with_2():
        from benchmarks.gpu_report import check_place, draw_service, keeper, service_table
        from benchmarks.gpu_service import Options, run_gpu_service
        from tresnet.devices import choose_device

        check_place(write)
        options = Options(
            device=choose_device(device),
            model=model,
            precision=precision,
            image_size=image_size,
            max_batch_size=max_batch_size,
            workers=_numbers(workers, "--workers"),
            connections=_numbers(connections, "--connections"),
            seconds=seconds,
            deadline_s=deadline_s,
        )
        with console.status("") as status:
            content = run_gpu_service(
                options.made_tiny() if tiny else options, status.update, _say, keeper("gpu-service", write)
            )
        _show("gpu-service", content, [service_table(content)], draw_service, write)


def _show(
    name: str,
    content: dict[str, Any],
    tables: list[Table],
    draw: Callable[[dict[str, Any], Path], None],
    wanted: Path | None,
) -> None:
    from benchmarks.gpu_report import place_for
    from benchmarks.gpu_report import write as write_report

    for table in tables:
        out.print(table)
    path = place_for(name, content, wanted)
    if path is None:
        out.print("not kept: only a GPU's figures at full size are; --write FILE keeps these")
        return
    write_report(path, content, tables)
    draw(content, path.with_suffix(".png"))
    out.print(f"{path}, with {path.with_suffix('.txt').name} and {path.with_suffix('.png').name}")


def _say(line: str) -> None:
    console.print(line, markup=False)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _precision(name: str) -> Precision:
    from tresnet.errors import UserError

    for precision in PRECISIONS:
        if name.strip() == precision:
            return precision
    raise UserError(f"--precisions takes {', '.join(PRECISIONS)}, not {name!r}")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from tresnet.errors import UserError

    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} takes numbers split by commas, not {text!r}") from error
    if min(numbers) < 1:
        raise UserError(f"{option} takes numbers from 1 on, not {text!r}")
    return numbers
