"""How answers about pictures are written to stdout: a table, JSON lines, or CSV. Written is flushed."""

from __future__ import annotations

import csv
import json
import sys
from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.table import Column, Table

from client import Result
from commands.console import console, out


class Writer:
    """Takes results one by one, and counts them."""

    streams = True
    """Whether each is written as it comes."""

    def __init__(self) -> None:
        self.written = 0
        self.failed = 0

    def write(self, name: str, result: Result) -> None:
        if result.is_ok:
            self.written += 1
        else:
            self.failed += 1
        self._put(name, result)

    def _put(self, name: str, result: Result) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Write what could not be written before."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()


class JsonLines(Writer):
    """The gateway's own result, with the picture's path."""

    def _put(self, name: str, result: Result) -> None:
        sys.stdout.write(json.dumps({"path": name, **result.document}) + "\n")
        sys.stdout.flush()


class Csv(Writer):
    """A row for each label; a picture without any, and one that failed, have one row."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = csv.writer(sys.stdout, lineterminator="\n")
        self._rows.writerow(("path", "status", "label", "label_id", "score", "threshold", "error"))

    def _put(self, name: str, result: Result) -> None:
        if result.error is not None:
            self._rows.writerow((name, "error", "", "", "", "", f"{result.error.code}: {result.error.detail}"))
        for entry in result.predictions:
            self._rows.writerow((name, "ok", entry.label, entry.label_id, entry.score, "", ""))
        for tag in result.tags:
            self._rows.writerow((name, "ok", tag.label, tag.label_id, tag.score, tag.threshold, ""))
        if result.is_ok and not (result.predictions or result.tags):
            self._rows.writerow((name, "ok", "", "", "", "", ""))
        sys.stdout.flush()


class AsTable(Writer):
    """For people: one table at the end, and why a picture failed on stderr at once."""

    streams = False

    def __init__(self, task: str) -> None:
        super().__init__()
        columns = ("picture", "label", "score", *(("threshold",) if task == "tag" else ()))
        self._table = Table(*(Column(name, overflow="fold") for name in columns))

    def _put(self, name: str, result: Result) -> None:
        if result.error is not None:
            console.print(f"[red]{escape(name)}:[/red] {escape(result.error.detail)}")
            self._table.add_row(escape(name), f"[red]{escape(result.error.code)}[/red]", "–")
            return
        rows = [
            *((entry.label, f"{entry.score:.4f}") for entry in result.predictions),
            *((tag.label, f"{tag.score:.4f}", f"{tag.threshold:.4f}") for tag in result.tags),
        ] or [("–", "")]
        for index, (label, *numbers) in enumerate(rows):
            self._table.add_row(escape(name) if index == 0 else "", escape(label), *numbers)

    def finish(self) -> None:
        if self._table.row_count:
            out.print(self._table)


def choose_writer(*, as_json: bool, as_csv: bool, task: str) -> Writer:
    if as_json:
        return JsonLines()
    return Csv() if as_csv else AsTable(task)
