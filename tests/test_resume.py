"""Interrupted runs, full disks and several processes: through the command line."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from conftest import ONE_THREAD, TRESNET, call_tresnet, run_tresnet, until
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_folder(tmp_path_factory.mktemp("data") / "digits", train=32, val=12, test=130)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nothing interrupted: mixing, varied colours, a moving average, clipping."""
    done = run_tresnet("train", "transfer", "--data", "digits", "--out", "whole", *OPTIONS, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder.parent / "whole"


@contextmanager
def started(arguments: Sequence[object], folder: Path, stderr: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, of which nothing is left behind."""
    process = subprocess.Popen(
        [TRESNET, *map(str, arguments)],
        cwd=folder, env=os.environ | ONE_THREAD, stderr=stderr, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_steps(process: subprocess.Popen[bytes], run: Path, steps: int, said: Path) -> None:
    log, deadline = run / "metrics.jsonl", time.monotonic() + 200
    while not log.exists() or log.read_text().count('"step"') < steps:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "endings", [{signal.SIGKILL: 1}, {signal.SIGTERM: 0, signal.SIGINT: 1}], ids=["killed", "stopped twice"]
)
def test_an_interrupted_run_ends_with_the_same_bits(whole: Path, endings: dict[signal.Signals, int]) -> None:
    """Killed in the second epoch, it goes on from the first one's checkpoint; asked to stop, from the very step.

    Such a request reaches the processes that load pictures, too, as a terminal's and a scheduler's do.
    """
    out = whole.parent / f"cut-{len(endings)}"
    arguments = ("train", "transfer", "--data", "digits", "--out", out.name, *OPTIONS, "--workers", 2)
    steps = len([line for line in (whole / "metrics.jsonl").read_text().splitlines() if '"step"' in line])
    said = whole.parent / f"{out.name}.log"
    for ending, epoch in endings.items():
        stop_after = steps // 3 * epoch + secrets.randbelow(steps // 3) + 1
        print(f"{ending.name} after step {stop_after}")
        with said.open("w") as stderr, started([*arguments, "--resume"], whole.parent, stderr) as process:
            wait_for_steps(process, out, stop_after, said)
            if ending == signal.SIGKILL:
                process.kill()
            else:
                os.killpg(process.pid, ending)
            assert process.wait(100) == (-signal.SIGKILL if ending == signal.SIGKILL else 130), said.read_text()
            until(lambda: not group_lives(process.pid), "the processes that load pictures are gone", 30)
        saved_step = torch.load(out / "last.pt", weights_only=True)["training"]["step"]
        assert saved_step >= (stop_after if ending != signal.SIGKILL else steps // 3)
    resumed = run_tresnet(*arguments, "--resume", cwd=whole.parent)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_bits(whole, out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
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
    resume = ("train", "transfer", "--data", whole.parent / "digits", "--out", "whole", *OPTIONS, "--resume")
    done = run_tresnet(*resume, cwd=tmp_path, largest_file=2**20)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "could not write" in done.stderr.splitlines()[-1] or "File too large" in done.stderr.splitlines()[-1]
    assert (tmp_path / "whole" / "last.pt").read_bytes() == before
    assert not list((tmp_path / "whole").glob(".*.pt*"))


def test_a_folder_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = call_tresnet("train", "transfer", "--data", folder, "--out", "file/run", *OPTIONS, cwd=tmp_path)
    assert (done.returncode, "file" in done.stderr.splitlines()[-1]) == (2, True), done.stderr


def test_a_run_goes_on_with_the_same_options_only(whole: Path) -> None:
    arguments = ("train", "transfer", "--data", "digits", "--out", "whole", "--resume", *OPTIONS)
    done = call_tresnet(*arguments, "--learning-rate", 0.5, cwd=whole.parent)
    assert (done.returncode, "other options" in done.stderr) == (2, True), done.stderr


def test_initial_weights_bring_no_head_of_other_labels_and_are_told_after_a_resume(whole: Path) -> None:
    """As many letters as digits; of a run that has ended a resume writes the card anew."""
    for split in ("train", "val"):
        (whole.parent / "letters" / split).mkdir(parents=True)
        for digit, letter in enumerate("abcdefghij"):
            folder = whole.parent / "digits" / split / str(digit)
            if folder.exists():
                (whole.parent / "letters" / split / letter).symlink_to(folder)
    arguments = ("train", "transfer", "--data", "letters", "--out", "letters-run", *OPTIONS, "--epochs", 1)
    begun = run_tresnet(*arguments, "--init", "whole/best.pt", cwd=whole.parent)
    assert begun.returncode == 0, begun.stderr
    assert "initialised from whole/best.pt; fresh: head.bias, head.weight" in begun.stderr
    other = call_tresnet(*arguments, "--resume", "--init", "whole/last.pt", cwd=whole.parent)
    assert (other.returncode, "init best.pt, last.pt" in other.stderr) == (2, True), other.stderr
    done = run_tresnet(*arguments, "--resume", cwd=whole.parent)
    assert done.returncode == 0, done.stderr
    assert "| initial weights | best.pt |" in (whole.parent / "letters-run" / "model_card.md").read_text()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, *map(str, arguments)]
    environment = os.environ | ONE_THREAD | {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_two_processes_find_the_same_figures_as_one(whole: Path) -> None:
    arguments = ("eval", "whole/best.pt", "--data", "digits", "--json")
    one, two = run_tresnet(*arguments, cwd=whole.parent), torchrun(TRESNET, *arguments, cwd=whole.parent)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    figures = [json.loads(done.stdout) for done in (one, two)]
    assert figures[0]["images"] == 130  # three batches, which two processes cannot share evenly
    assert {**figures[0], "seconds": 0} == pytest.approx({**figures[1], "seconds": 0}, abs=1e-6)


def test_two_processes_train_one_model(whole: Path) -> None:
    """On two machines that share no disk, one of which is asked to stop."""
    nodes = [whole.parent / f"node{rank}" for rank in (0, 1)]
    for node in nodes:
        node.mkdir()
    there = whole.parent / "on_its_node.sh"
    there.write_text('cd node$RANK && echo $$ > pid && exec "$@"')
    options = ("--data", whole.parent / "digits", "--out", "run", *OPTIONS, "--accumulate", 2, "--workers", 1)
    arguments = ("sh", there, TRESNET, "train", "transfer", *options, "--resume")
    log = nodes[0] / "run" / "metrics.jsonl"
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(torchrun, *arguments, cwd=whole.parent)
        until(lambda: begun.done() or (log.exists() and '"step"' in log.read_text()), "the first step", 200)
        os.killpg(int((nodes[1] / "pid").read_text()), signal.SIGTERM)
        stopped = begun.result()
    assert "stopped; go on with" in stopped.stderr, stopped.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    saved = torch.load(nodes[0] / "run" / "last.pt", weights_only=True)["training"]["step"]
    assert [line["step"] for line in lines if "step" in line][-1] == saved

    done = torchrun(*arguments, cwd=whole.parent)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {saved} of 12" in done.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    alone = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [line.get("step") for line in alone]
    assert lines[-1]["val_top1"] >= 0
    assert not list((nodes[1] / "run").iterdir())
    own, other = re.findall(r"on 130 held-out pictures top-1 accuracy ([0-9.]+) %", done.stderr)
    judged = run_tresnet("eval", "node0/run/best.pt", "--data", "digits", "--json", cwd=whole.parent)
    assert own == other == f"{json.loads(judged.stdout)['top1']:.1%}".removesuffix("%")


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
