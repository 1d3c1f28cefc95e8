"""Training through the command line, and its figures against independent ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_tresnet
from sklearn.metrics import average_precision_score, f1_score

from training.losses import asymmetric_loss
from training.metrics import best_thresholds, mean_average_precision, micro_f1


def test_a_run_is_whole_and_better_than_chance(models: Path) -> None:
    run = models / "runs" / "digits"
    assert {"last.pt", "best.pt", "metrics.jsonl", "curves.png", "test"} <= {path.name for path in run.iterdir()}
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = run_tresnet("eval", "runs/digits/best.pt", "--json", cwd=models)
    files = run_tresnet("eval", "runs/digits/best.pt", "--data", "runs/digits/test", "--json", cwd=models)
    figures = json.loads(own.stdout)
    assert figures["images"] == 360
    assert figures["top1"] > 0.5
    assert json.loads(files.stdout)["top1"] == pytest.approx(figures["top1"], abs=1e-9)
    again = run_tresnet("train", "digits", cwd=models)
    assert (again.returncode, "--resume" in again.stderr) == (2, True)


def test_map_equals_sklearns() -> None:
    random = np.random.default_rng(0)
    scores = random.permutation(600).reshape(100, 6).astype(np.float32) / 600
    targets = (random.random((100, 6)) < 0.3).astype(np.float32)
    expected = np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in range(6)])
    assert mean_average_precision(scores, targets) == pytest.approx(expected)
    assert micro_f1(scores, targets, 0.5) == pytest.approx(f1_score(targets, scores >= 0.5, average="micro"))


def test_fitted_thresholds_beat_one_half() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((300, 3)) < 0.3).astype(np.float32)
    scores = np.clip(0.6 + 0.2 * targets + 0.05 * random.standard_normal((300, 3)), 0, 1).astype(np.float32)
    thresholds = best_thresholds(scores, targets)
    assert micro_f1(scores, targets, np.array(thresholds)) > 0.95 > micro_f1(scores, targets, 0.5)


def test_asymmetric_loss_written_out() -> None:
    logits, targets = torch.tensor([[0.3, -1.2]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    p, q = torch.sigmoid(torch.tensor(0.3)), torch.sigmoid(torch.tensor(-1.2)) - 0.05
    expected = -torch.log(p) - q**4 * torch.log(1 - q)
    assert asymmetric_loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)
