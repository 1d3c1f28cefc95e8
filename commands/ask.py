"""``tresnet classify`` and ``tresnet tag``: ask a running gateway about picture files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from commands.console import console, fails_with_2, out
from tresnet.errors import UserError

Images = Annotated[list[Path], typer.Argument(help="Picture files.", metavar="IMAGE...")]
Url = Annotated[str, typer.Option(help="Where the gateway is.")]
ApiKey = Annotated[str | None, typer.Option(envvar="TRESNET_API_KEY", help="Where the gateway asks for one.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a picture, a line each.")]


def classify(
    images: Images,
    url: Url = "http://127.0.0.1:8080",
    top_k: Annotated[int, typer.Option(help="How many labels.", min=1)] = 5,
    as_json: AsJson = False,
    api_key: ApiKey = None,
) -> None:
    """Ask a running gateway for each picture's best labels."""
    _ask(images, f"{url.rstrip('/')}/classify", {"top_k": str(top_k)}, "predictions", as_json, api_key)


def tag(
    images: Images,
    url: Url = "http://127.0.0.1:8080",
    top_k: Annotated[int | None, typer.Option(help="At most so many tags.", min=1)] = None,
    as_json: AsJson = False,
    api_key: ApiKey = None,
) -> None:
    """Ask a running gateway for each picture's tags."""
    query = {} if top_k is None else {"max_tags": str(top_k)}
    _ask(images, f"{url.rstrip('/')}/tag", query, "tags", as_json, api_key)


def _ask(images: list[Path], url: str, query: dict[str, str], listed: str, as_json: bool, api_key: str | None) -> None:
    """Exit status 1 if any picture failed, 2 if the gateway could not be asked at all."""
    import httpx

    headers = {"Content-Type": "application/octet-stream"} | ({"X-API-Key": api_key} if api_key else {})
    table = Table("picture", "label", "score")
    failed = False
    with fails_with_2(), httpx.Client(timeout=60) as client:
        for path in images:
            data = path.read_bytes()
            try:
                response = client.post(url, params=query, content=data, headers=headers)
                document = response.json()
            except httpx.HTTPError as error:
                raise UserError(f"no gateway answers at {url}: {error}; start one with `tresnet serve`") from error
            except json.JSONDecodeError as error:
                raise UserError(f"what answers at {url} is no TResNet gateway") from error
            result = _result(document, response.status_code)
            failed = failed or result["status"] != "ok"
            if as_json:
                typer.echo(json.dumps({"path": str(path), **result}))
            else:
                _add_rows(table, path, result, listed)
    if not as_json:
        out.print(table)
    if failed:
        raise typer.Exit(1)


def _result(document: dict[str, Any], status: int) -> dict[str, Any]:
    if status == 200:
        result: dict[str, Any] = document["results"][0]
        return result
    return {"status": "error", "error": {key: document.get(key) for key in ("status", "code", "detail")}}


def _add_rows(table: Table, path: Path, result: dict[str, Any], listed: str) -> None:
    if result["status"] != "ok":
        console.print(f"[red]{path}:[/red] {result['error']['detail']}")
        return
    for index, entry in enumerate(result[listed]):
        table.add_row(str(path) if index == 0 else "", entry["label"], f"{entry['score']:.4f}")
    if not result[listed]:
        table.add_row(str(path), "–", "")
