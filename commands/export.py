"""``tresnet export``: a checkpoint becomes a verified version in the model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.console import console, fails_with_2
from tresnet.errors import UserError
from tresnet.terms import SMALLEST_SIDE, Arch, Interpolation, Precision, ProgramFormat, ResizeMode, Task

WantedPrecision = Literal["auto", Precision]


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A training run's checkpoint, a release's .pth, timm's .safetensors or .pth, or hf://timm/NAME.",
            metavar="CHECKPOINT",
        ),
    ],
    task: Annotated[Task, typer.Option(help="classify: one label wins. tag: each label by itself.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository and in requests.", metavar="MODEL")],
    repository: Annotated[Path, typer.Option(help="The model repository to publish in.")] = Path("model_repository"),
    version: Annotated[int | None, typer.Option(help="Version number; the next free one by default.", min=1)] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A file of labels, one a line, in place of the checkpoint's.")
    ] = None,
    arch: Annotated[Arch | None, typer.Option(help="Override the recognised architecture.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the network's input, in pixels.", min=SMALLEST_SIDE)
    ] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Share of the shorter side that is kept, 0..1.")] = None,
    interpolation: Annotated[Interpolation | None, typer.Option(help="Filter for resizing.")] = None,
    resize_mode: Annotated[
        ResizeMode | None, typer.Option(help="crop: keep the aspect ratio, cut the centre. squash: stretch.")
    ] = None,
    mean: Annotated[str, typer.Option(help="Mean to subtract, on the 0..1 scale.", metavar="R,G,B")] = "0,0,0",
    std: Annotated[str, typer.Option(help="Standard deviation to divide by.", metavar="R,G,B")] = "1,1,1",
    negative_slope: Annotated[
        float | None,
        typer.Option(help="Slope of all leaky ReLUs; only V2-L's weights differ (1e-6 in its cars weights).", min=1e-9),
    ] = None,
    precision: Annotated[
        WantedPrecision,
        typer.Option(help="Number format inside the program; auto: the fastest that this machine computes in itself."),
    ] = "fp32",
    card: Annotated[
        Path | None, typer.Option(help="A model card of your own, in Markdown, in place of the run's.", metavar="FILE")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(help="Most pictures in one run.", min=1, max=1024)] = 32,
    program_format: Annotated[
        ProgramFormat,
        typer.Option(
            "--format",
            help="torchscript: one file for any device. torch_aoti: compiled for --device, for Triton 26.06 or newer.",
        ),
    ] = "torchscript",
    device: Annotated[
        str, typer.Option(help="Where the program is verified: auto (a GPU if there is one), cpu or cuda.")
    ] = "auto",
) -> None:
    """Export a checkpoint as a serving program into a Triton model repository.

    The program is compared with the eager network on batches of 1 and of the maximum size, and the version
    appears in the repository only if they agree.
    """
    with fails_with_2():
        import logging

        from export.export import ExportRequest, export_checkpoint
        from export.program import Normalisation
        from tresnet.checkpoint import load_checkpoint
        from tresnet.devices import choose_device, native_precision

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        loaded = load_checkpoint(checkpoint, task=task, image_size=image_size)
        slopes = {"stem_slope": negative_slope, "block_slope": negative_slope} if negative_slope else {}
        changes = slopes | ({"arch": arch} if arch else {})
        loaded = loaded.model_copy(update={"facts": loaded.facts.model_copy(update=changes)})
        preprocessing = loaded.facts.preprocessing.changed(
            image_size=image_size, crop_pct=crop_pct, interpolation=interpolation, resize_mode=resize_mode
        )
        names = _labels(labels, loaded.facts.labels)
        exported = export_checkpoint(
            ExportRequest(
                checkpoint=loaded,
                name=name,
                task=task,
                repository=repository,
                version=version,
                labels=names,
                preprocessing=preprocessing,
                normalisation=Normalisation(_three(mean, "--mean"), _three(std, "--std")),
                precision=native_precision() if precision == "auto" else precision,
                max_batch_size=max_batch_size,
                format=program_format,
                device=choose_device(device),
                card=_text(card) if card is not None else None,
            )
        )
    facts, verified = exported.contract.facts, exported.verified
    console.print(
        f"[green]{exported.folder}[/green]: {facts.architecture}, {task}, {exported.contract.num_labels} labels, "
        f"{preprocessing.image_size} px, {facts.precision}"
    )
    console.print(
        f"verified on the {verified.device.replace('cuda', 'gpu').upper()} against the eager network at batches "
        f"{', '.join(map(str, verified.batch_sizes))}: scores at most "
        f"{verified.max_distance:.1e} apart, best label equal for {verified.top1_agreement:.1%}"
    )
    if names[0] == "class_0":
        console.print(f"nothing names the {len(names)} labels: they are class_0, class_1, …; give --labels FILE")


def _labels(path: Path | None, own: list[str]) -> list[str]:
    labels = own
    if path is not None:
        try:
            labels = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a file of labels: {error}") from error
    if len(labels) != len(own):
        raise UserError(f"{path} has {len(labels)} labels, and the checkpoint {len(own)} classes")
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated:
        raise UserError(f"labels must differ; given more than once: {', '.join(sorted(repeated)[:5])}")
    if any("\n" in label or "\r" in label for label in labels):
        raise UserError("a label must be one line of text")
    return labels


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error


def _three(text: str, option: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} takes three numbers, such as 0.485,0.456,0.406, not {text!r}") from error
    if option == "--std" and min(red, green, blue) <= 0:
        raise UserError(f"{option} must be above 0, not {text!r}")
    return red, green, blue
