"""Hooks of pytest, for conftest: what the servers of a failed test have logged meanwhile, beneath its traceback."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

_LINES = 60
_folders: set[Path] = set()
_sizes: dict[Path, int] = {}


def watch(folder: Path) -> None:
    """A server runs in ``folder``: its own log is ``serve-PORT.log`` there, its Triton's ``logs/triton.log``."""
    _folders.add(folder)


def _logs() -> list[Path]:
    found = [path for folder in sorted(_folders) for path in (*folder.glob("serve-*.log"), folder / "logs/triton.log")]
    return [path for path in found if path.exists()]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _sizes.clear()
    _sizes.update({path: path.stat().st_size for path in _logs()})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for path in _logs():
            with path.open("rb") as log:
                log.seek(_sizes.get(path, 0))
                lines = log.read().decode(errors="replace").splitlines()
            told = [line for line in lines if '"logger":"tresnet.requests"' not in line][-_LINES:]
            if told:
                report.sections.append((f"{path} since the test began", "\n".join(told)))
    return report
