"""The commands and programs in README.md, CONTRIBUTING.md and docs/ do what they say.

Every fenced block of a shell or of Python is run, in order and in a folder with the models, against the real server.
A block that cannot be is marked in the line before it, ``<!-- tested by: FILE -->`` or ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TRESNET, Server

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("sh", "bash", "shell", "console")
_FENCE = re.compile(r"^( *)(`{3,})(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (tested by|not run): (.+?) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: tuple[str, str] | None


def _blocks() -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for fence in _FENCE.finditer(text):
            if fence[3] in (*SHELLS, "python"):
                mark = _MARK.search(text[: fence.start()].rstrip(" "))
                line = text.count("\n", 0, fence.start()) + 1
                name = str(page.relative_to(ROOT))
                found.append(Block(name, line, fence[3], fence[4], (mark[1], mark[2]) if mark else None))
    return found


BLOCKS = _blocks()
RUN = [block for block in BLOCKS if block.mark is None]


def test_marks_are_true() -> None:
    assert len(BLOCKS) > 10, "blocks are not found any more"
    assert len(RUN) >= 6
    for block in BLOCKS:
        if block.mark is not None and block.mark[0] == "tested by":
            for name in block.mark[1].split(", "):
                assert (ROOT / name).is_file(), f"{block.page}:{block.line} names {name}, which is not there"


@pytest.fixture(scope="session")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: the examples and the models of the server."""
    folder = tmp_path_factory.mktemp("reader")
    for origin in (ROOT / "examples", server.folder / "model_repository"):
        shutil.copytree(origin, folder / origin.name)
    return folder


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.page}:{block.line}")
def test_what_is_written_works(block: Block, server: Server, folder: Path) -> None:
    program = block.text.replace("http://127.0.0.1:8080", server.url)
    if block.language == "console":
        program = "\n".join(line.removeprefix("$ ") for line in program.splitlines() if line.startswith("$ "))
    runner = [sys.executable, "-c", program] if block.language == "python" else ["sh", "-ec", program]
    done = subprocess.run(
        runner,
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(TRESNET).parent}:{os.environ['PATH']}", "TRESNET_URL": server.url},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.page}:{block.line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.stdout.strip(), f"{block.page}:{block.line} says nothing"
    assert '"status":4' not in done.stdout
    assert '"status":5' not in done.stdout
