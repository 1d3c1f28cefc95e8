"""What ``tresnet eval`` measures: the pictures that a run held out, wherever its data is by now."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import random_checkpoint, run_side_by_side, run_tresnet

from training.pictures import encode_png

TEN_STEPS = ("--arch", "tresnet_s", "--image-size", 20, "--batch-size", 16, "--epochs", 5)
"""In all, of which the recipe's rise of the learning rate takes a tenth: one step exactly."""


def write_noise(folder: Path, seed: int) -> None:
    """Two labels of 20 pictures each that nothing tells apart."""
    random = np.random.default_rng(seed)
    for label in ("heads", "tails"):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            (folder / label / f"{number}.png").write_bytes(encode_png(random.integers(0, 256, (24, 24, 3), np.uint8)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``coins``, a run on them, and what it said."""
    folder = tmp_path_factory.mktemp("eval")
    write_noise(folder / "coins", 0)
    write_noise(folder / "others", 1)
    done = run_tresnet("train", "transfer", "--data", "coins", "--out", "run", *TEN_STEPS, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


def test_a_run_that_may_have_learnt_nothing_says_so(run: Path) -> None:
    said = (run / "said").read_text()
    assert "starting from random weights: with --init, hf://timm/tresnet_m.miil_in1k" in said
    assert "not shown to be better than guessing" in said
    assert "training tresnet_s at 20 pixels: 5 epochs, 10 steps of 16 pictures" in said
    assert re.search(
        r"epoch 5/5: top-1 accuracy [0-9.]+ % \([0-9.]+ % by the weights' moving average\), training loss", said
    )
    assert re.search(
        r"best\.pt: on 4 held-out pictures top-1 accuracy [0-9.]+ %, calibration error 0\.[0-9]+; run/", said
    )
    assert "50% would be with the commonest label always" in (run / "run" / "model_card.md").read_text()


def test_held_out_pictures_are_found_again(run: Path) -> None:
    counts = np.array(json.loads((run / "run" / "confusion.json").read_text())["counts"])
    assert counts.sum() == 4

    def evaluate(*calls: tuple[str, ...]) -> list[tuple[int, dict[str, float], str]]:
        done = run_side_by_side([("eval", *call) for call in calls], cwd=run)
        assert all(one.returncode or "top-1 accuracy" in one.stdout for one in done)
        return [(one.returncode, json.loads((one.stdout.splitlines() or ["{}"])[-1]), one.stderr) for one in done]

    cut = run / "others" / "tails" / "7.png"
    cut.write_bytes(cut.read_bytes()[:1000])
    (run / "others" / "tails" / "8.png").write_text("no picture")
    calls = [("run/best.pt",), ("run/best.pt", "--data", "others"), ("run/best.pt", "--data", "others", "--skip-bad")]
    own, damaged, others = evaluate(*calls)
    assert (own[1]["images"], own[1]["top1"]) == (4, counts.trace() / 4)
    assert (damaged[0], "2 of 40 pictures cannot be read; --skip-bad goes on without:" in damaged[2]) == (2, True)
    named = [line.split(": ")[0] for line in damaged[2].splitlines()[-2:]]
    assert named == ["  others/tails/7.png", "  others/tails/8.png"]
    assert "the 4 of 40 pictures in coins that the run held out" in own[2]
    assert (others[1]["images"], "all 40 pictures in others" in others[2]) == (38, True)

    (run / "coins").rename(run / "moved")
    (run / "moved" / "heads" / "new.png").write_bytes((run / "others" / "heads" / "0.png").read_bytes())
    gone, moved = evaluate(("run/best.pt",), ("run/best.pt", "--data", str(run / "moved")))
    assert (moved[1]["images"], moved[1]["top1"]) == (4, own[1]["top1"])
    assert (gone[0], "say with --data where it is now" in gone[2], len(gone[2].splitlines())) == (2, True, 1)


def test_where_no_picture_has_a_label_there_is_no_precision(tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "c.pt", task="tag", labels=["a", "b"], size=32, arch="tresnet_s")
    write_noise(tmp_path, 0)
    (tmp_path / "labels.csv").write_text("path,labels\nheads/0.png,\ntails/1.png,\n")
    done = run_tresnet("eval", "c.pt", "--data", "labels.csv", "--task", "tag", cwd=tmp_path)
    assert (done.returncode, "Warning" in done.stderr) == (0, False), done.stderr
    figures = json.loads(done.stdout.splitlines()[-1], parse_constant=pytest.fail)
    assert (figures["map"], figures["cp"], figures["or"]) == (None, None, 0)
    assert "nan" not in done.stdout
