"""``tresnet classify`` and ``tresnet tag``: ask a running gateway about any number of pictures.

Enters: files, folders, patterns, a list of paths, a picture on stdin. Leaves: their answers on stdout in the order
asked, as a table, JSON lines or CSV; a progress bar and what went wrong on stderr; the exit status.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from commands.console import console, fails_with_2
from tresnet.errors import UserError

if TYPE_CHECKING:
    from client import Patience
    from commands.answers import Writer
    from commands.picture_paths import NamedPicture

DEFAULT_URL = "http://127.0.0.1:8080"
SOME_FAILED, WRONG_USAGE, UNREACHABLE = 1, 2, 3
_ATTEMPT_S = 30.0
EXIT_STATUS = """\
Exit status: 0 every picture was answered · 1 some were not · 2 wrong usage, or refused as a whole ·
3 no gateway answers, or it is overloaded; the answers until then are on stdout · 130 interrupted, as 3."""

Images = Annotated[
    list[str] | None,
    typer.Argument(
        help="Picture files, folders (with all below), quoted patterns such as 'photos/**/*.jpg'; - is one picture "
        "on stdin.",
        metavar="IMAGE...",
        show_default=False,
    ),
]
PathsFrom = Annotated[
    str | None, typer.Option("--from", help="Read paths from this file, a line each; - is stdin.", metavar="FILE")
]
Url = Annotated[str, typer.Option(envvar="TRESNET_URL", help="Where the gateway is.")]
ApiKey = Annotated[str | None, typer.Option(envvar="TRESNET_API_KEY", help="Where the gateway asks for one.")]
ModelName = Annotated[str | None, typer.Option("--model", help="The model, where several fit.", metavar="NAME")]
ModelVersion = Annotated[
    str | None, typer.Option("--version", help="The model's version; the highest if not given.", metavar="N")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines: an object for each picture, as it is answered.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="CSV: a row for each label, as pictures are answered.")]
Explain = Annotated[
    bool, typer.Option("--explain", help="With --json: heat maps, of where each label was seen (docs/heat_maps.md).")
]
Embedding = Annotated[bool, typer.Option("--embedding", help="With --json: the pooled features, as numbers.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures in one request.")]
Connections = Annotated[int, typer.Option(min=1, help="Requests at once.")]
RetryFor = Annotated[float, typer.Option(min=0, help="Seconds to go on trying when the gateway is away or overloaded.")]


def classify(
    images: Images = None,
    paths_from: PathsFrom = None,
    url: Url = DEFAULT_URL,
    model: ModelName = None,
    version: ModelVersion = None,
    top_k: Annotated[int, typer.Option(help="How many labels.", min=1)] = 5,
    min_score: Annotated[float | None, typer.Option(help="Leave out labels below it.", min=0, max=1)] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    explain: Explain = False,
    embedding: Embedding = False,
    api_key: ApiKey = None,
    batch_size: BatchSize = 16,
    connections: Connections = 4,
    retry_for: RetryFor = 5.0,
) -> None:
    """Ask a running gateway for each picture's best labels."""
    parameters = {
        "model": model, "version": version, "top_k": top_k, "min_score": min_score,
        "explain": explain, "embedding": embedding,
    }  # fmt: skip
    _run(
        _Asking("classify", url, api_key, parameters, batch_size, connections, retry_for),
        images or [], paths_from, as_json, as_csv,
    )  # fmt: skip


def tag(
    images: Images = None,
    paths_from: PathsFrom = None,
    url: Url = DEFAULT_URL,
    model: ModelName = None,
    version: ModelVersion = None,
    top_k: Annotated[int | None, typer.Option(help="At most so many tags.", min=1)] = None,
    threshold: Annotated[
        float | None, typer.Option(help="One for all labels, in place of each label's own.", min=0, max=1)
    ] = None,
    include_labels: Annotated[
        list[str] | None, typer.Option(help="Only this label; may be given several times.", metavar="LABEL")
    ] = None,
    exclude_labels: Annotated[
        list[str] | None, typer.Option(help="Never this label; may be given several times.", metavar="LABEL")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    explain: Explain = False,
    embedding: Embedding = False,
    api_key: ApiKey = None,
    batch_size: BatchSize = 16,
    connections: Connections = 4,
    retry_for: RetryFor = 5.0,
) -> None:
    """Ask a running gateway for each picture's tags."""
    parameters = {
        "model": model, "version": version, "max_tags": top_k, "threshold": threshold,
        "include_labels": include_labels, "exclude_labels": exclude_labels,
        "explain": explain, "embedding": embedding,
    }  # fmt: skip
    _run(
        _Asking("tag", url, api_key, parameters, batch_size, connections, retry_for),
        images or [], paths_from, as_json, as_csv,
    )  # fmt: skip


@dataclass(frozen=True)
class _Asking:
    """What is asked of whom, and how."""

    task: str
    url: str
    api_key: str | None
    parameters: dict[str, Any]
    batch_size: int
    connections: int
    retry_for_s: float

    @property
    def patience(self) -> Patience:
        from client import Patience

        deadline_s = _ATTEMPT_S + self.retry_for_s
        return Patience(deadline_s=deadline_s, attempt_s=_ATTEMPT_S, retry_for_s=self.retry_for_s)


def _run(asking: _Asking, images: list[str], paths_from: str | None, as_json: bool, as_csv: bool) -> None:
    from client import ClientError, ProblemError, UnavailableError, UnreachableError
    from commands.answers import choose_writer
    from commands.away import does_hang, hangs, why_away
    from commands.picture_paths import find_pictures

    with fails_with_2():
        if as_json and as_csv:
            raise UserError("--json and --csv exclude each other")
        if not as_json and (asking.parameters["explain"] or asking.parameters["embedding"]):
            raise UserError("heat maps and embeddings go into JSON alone: add --json to --explain and --embedding")
        pictures = find_pictures(images, paths_from)
        writer = choose_writer(as_json=as_json, as_csv=as_csv, task=asking.task)
    status = 0
    if does_hang(asking.url, asking.retry_for_s):
        _say(hangs(asking.url))
        raise typer.Exit(UNREACHABLE)
    try:
        with writer:
            asyncio.run(_ask(asking, pictures, writer))
    except (UnreachableError, UnavailableError) as error:
        _say(why_away(asking.url, error))
        status = UNREACHABLE
    except ProblemError as error:
        _say(error.detail)
        status = WRONG_USAGE
    except ClientError as error:
        _say(f"{asking.url}: {error}")
        status = WRONG_USAGE
    except KeyboardInterrupt:
        status = 130
    if status and len(pictures) > 1:
        console.print(f"{writer.written:,} of {len(pictures):,} pictures were answered")
    if status or writer.failed:
        raise typer.Exit(status or SOME_FAILED)


async def _ask(asking: _Asking, pictures: list[NamedPicture], writer: Writer) -> None:
    """Results are taken as they come and written in order; at an end before time, those that wait are written, too."""
    from client import AsyncClient

    held: dict[int, Any] = {}
    following = 0
    with _progress(len(pictures), writer) as progress:
        bar = progress.add_task("", total=len(pictures))
        async with AsyncClient(asking.url, api_key=asking.api_key, patience=asking.patience) as client:
            ask_each = client.classify_each if asking.task == "classify" else client.tag_each
            try:
                async for result in ask_each(
                    (picture.content for picture in pictures),
                    batch_size=asking.batch_size,
                    connections=asking.connections,
                    ordered=False,
                    **asking.parameters,
                ):
                    held[int(result.id)] = result
                    progress.advance(bar)
                    while following in held:
                        writer.write(pictures[following].name, held.pop(following))
                        following += 1
            finally:
                for place in sorted(held):
                    writer.write(pictures[place].name, held[place])


class _Speed(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="dim")


def _progress(total: int, writer: Writer) -> Progress:
    """A bar on a terminal, for more than a handful, unless answers are written between its lines."""
    is_shown = total >= 5 and console.is_terminal and not (writer.streams and sys.stdout.isatty())
    columns = (BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    # Redirected, answers would come out where the bar is.
    return Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not is_shown)


def _say(message: str) -> None:
    console.print(f"[red]error:[/red] {escape(message)}")
