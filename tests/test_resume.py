"""Interrupted runs, full disks and several processes: through the command line."""

from __future__ import annotations

import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRESNET, run_tresnet
from PIL import Image
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OPTIONS = ("--image-size", "20", "--batch-size", "8", "--epochs", "3", "--seed", "3", "--arch", "tresnet_s")


def digits_folder(root: Path, **splits: int) -> Path:
    """Real digits as folders of labelled pictures, so many in each split."""
    data = load_digits()
    indices = iter(range(len(data.target)))
    for split, count in splits.items():
        for index in islice(indices, count):
            file = root / split / str(data.target[index]) / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[index] * 255 / 16).astype(np.uint8)).save(file)
    return root


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def assert_same_bits(one: Path, other: Path) -> None:
    for name in ("last.pt", "best.pt"):
        a, b = weights(one / name), weights(other / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and wait for it on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_folder(tmp_path_factory.mktemp("data") / "digits", train=32, val=12, test=130)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nothing interrupted: mixing, varied colours, a moving average, clipping."""
    done = run_tresnet("train", "transfer", "--data", "digits", "--out", "whole", *OPTIONS, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder.parent / "whole"


@pytest.mark.parametrize(("ending", "epoch"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)], ids=["SIGKILL", "SIGINT"])
def test_an_interrupted_run_ends_with_the_same_bits(whole: Path, ending: signal.Signals, epoch: int) -> None:
    """Killed in the second epoch, it goes on from the first one's checkpoint; asked to stop, from the very step."""
    out = whole.parent / f"cut-{ending.name}"
    arguments = ("train", "transfer", "--data", "digits", "--out", out.name, *OPTIONS)
    steps = len([line for line in (whole / "metrics.jsonl").read_text().splitlines() if '"step"' in line])
    stop_after = steps // 3 * epoch + secrets.randbelow(steps // 3) + 1
    said = whole.parent / f"{out.name}.log"
    with said.open("w") as stderr:
        process = subprocess.Popen([TRESNET, *arguments], cwd=whole.parent, stderr=stderr)
    log, deadline = out / "metrics.jsonl", time.monotonic() + 200
    while not log.exists() or log.read_text().count('"step"') < stop_after:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(ending)
    assert process.wait(100) in (-signal.SIGKILL, 130)
    saved_step = torch.load(out / "last.pt", weights_only=True)["training"]["step"]
    assert saved_step >= (stop_after if ending == signal.SIGINT else steps // 3)
    resumed = run_tresnet(*arguments, "--resume", cwd=whole.parent)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_bits(whole, out)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == list(range(1, steps + 1))
    losses = [
        [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, out)
    ]
    assert losses[0] == losses[1]
    events = EventAccumulator(str(out)).Reload().Scalars("train/loss")
    assert [event.step for event in events] == list(range(1, steps + 1)), "TensorBoard shows a step twice"


def test_a_full_disk_leaves_the_last_checkpoint_whole(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "whole")
    state = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)
    state["training"]["step"] -= 1
    state["training"]["schedule"]["last_epoch"] -= 1
    torch.save(state, tmp_path / "whole" / "last.pt")
    before = (tmp_path / "whole" / "last.pt").read_bytes()
    done = subprocess.run(
        [TRESNET, "train", "transfer", "--data", whole.parent / "digits", "--out", "whole", *OPTIONS, "--resume"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "could not write" in done.stderr.splitlines()[-1] or "File too large" in done.stderr.splitlines()[-1]
    assert (tmp_path / "whole" / "last.pt").read_bytes() == before
    assert not list((tmp_path / "whole").glob(".*.pt*"))


def test_a_folder_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = run_tresnet("train", "transfer", "--data", folder, "--out", "file/run", *OPTIONS, cwd=tmp_path)
    assert done.returncode == 2
    assert "file" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_run_goes_on_with_the_same_options_only(whole: Path) -> None:
    arguments = ("train", "transfer", "--data", "digits", "--out", "whole", "--resume", *OPTIONS)
    done = run_tresnet(*arguments, "--learning-rate", 0.5, cwd=whole.parent)
    assert (done.returncode, "other options" in done.stderr) == (2, True), done.stderr


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, TRESNET, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def test_two_processes_find_the_same_figures_as_one(whole: Path) -> None:
    arguments = ("eval", "whole/best.pt", "--data", "digits", "--json")
    one, two = run_tresnet(*arguments, cwd=whole.parent), torchrun(*arguments, cwd=whole.parent)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    figures = [json.loads(done.stdout) for done in (one, two)]
    assert figures[0]["images"] == 130  # three batches, which two processes cannot share evenly
    assert {**figures[0], "seconds": 0} == pytest.approx({**figures[1], "seconds": 0}, abs=1e-6)


def test_two_processes_train_one_model(whole: Path) -> None:
    done = torchrun(
        "train", "transfer", "--data", "digits", "--out", "two", *OPTIONS, "--accumulate", 2, cwd=whole.parent
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (whole.parent / "two" / "metrics.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [line.get("step") for line in alone]
    assert lines[-1]["val_top1"] >= 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(whole: Path, precision: str) -> None:
    untested = whole.parent / f"untested-{precision}"
    untested.mkdir()
    for split in ("train", "val"):
        (untested / split).symlink_to(whole.parent / "digits" / split)
    arguments = ("train", "transfer", "--data", untested, "--out", precision, *OPTIONS, "--precision", precision)
    done = run_tresnet(*arguments, "--epochs", 1, cwd=whole.parent)
    assert done.returncode == 0, done.stderr
    assert "There were no test pictures" in (whole.parent / precision / "model_card.md").read_text()
    assert "There were no test pictures" not in (whole / "model_card.md").read_text()
    lines = [json.loads(line) for line in (whole.parent / precision / "metrics.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [[line["loss"] for line in run if "loss" in line][:4] for run in (lines, alone)]
    assert losses[0] != losses[1]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.01)  # of the same weights; rounding then leads apart
    assert np.mean(losses[0]) == pytest.approx(np.mean(losses[1]), rel=0.05)
