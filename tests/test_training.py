"""Training through the command line, and its figures against independent ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call_tresnet, random_checkpoint, run_tresnet
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from training.distributed import World
from training.evaluation import Evaluation, evaluate_checkpoint
from training.losses import asymmetric_loss
from training.metrics import (
    best_temperature,
    best_thresholds,
    expected_calibration_error,
    mean_average_precision,
    micro_f1,
    precision_recall_f1,
    to_scores,
    top_k_accuracy,
)
from training.optimizer import create_optimizer, create_schedule
from training.pictures import encode_png, in_memory
from training.recipes import find_recipe
from training.report import write_report
from training.runlog import RunLog
from tresnet.checkpoint import ModelFacts, build_model, initialise, load_checkpoint, save_checkpoint
from tresnet.errors import UserError
from tresnet.model import create_model
from tresnet.picture import Preprocessing

HEAD = ["head.bias", "head.weight"]


def test_a_run_is_whole_and_better_than_chance(models: Path) -> None:
    run = models / "runs" / "digits"
    expected = {"last.pt", "best.pt", "metrics.jsonl", "curves.png", "test", "confusion.png", "per_label.png"}
    assert expected <= {path.name for path in run.iterdir()}
    assert [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = run_tresnet("eval", "runs/digits/best.pt", "--json", cwd=models)
    files = run_tresnet("eval", "runs/digits/best.pt", "--data", "runs/digits/test", "--json", cwd=models)
    figures = json.loads(own.stdout)
    assert figures["images"] == 360
    assert figures["top1"] > 0.5
    assert json.loads(files.stdout)["top1"] == pytest.approx(figures["top1"], abs=1e-9)
    assert figures["ece"] < figures["ece_raw"]
    counts = np.array(json.loads((run / "confusion.json").read_text())["counts"])
    assert counts.trace() / counts.sum() == pytest.approx(figures["top1"])
    table = json.loads((run / "per_label.json").read_text())
    assert sum(row["recall"] * row["pictures"] for row in table) / 360 == pytest.approx(figures["top1"], abs=1e-3)
    again = call_tresnet("train", "digits", cwd=models)
    assert (again.returncode, "--resume" in again.stderr) == (2, True)


def test_map_equals_sklearns() -> None:
    random = np.random.default_rng(0)
    scores = random.permutation(600).reshape(100, 6).astype(np.float32) / 600
    targets = (random.random((100, 6)) < 0.3).astype(np.float32)
    expected = np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in range(6)])
    assert mean_average_precision(scores, targets) == pytest.approx(expected)
    assert micro_f1(scores, targets, 0.5) == pytest.approx(f1_score(targets, scores >= 0.5, average="micro"))


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy_counts_the_first_of_equal_scores(k: int) -> None:
    random = np.random.default_rng(k)
    scores, classes = random.integers(0, 4, (500, 7)).astype(np.float32), random.integers(0, 7, 500)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert top_k_accuracy(scores, classes, k) == (best == classes[:, None]).any(axis=1).mean()


def test_answers_that_are_no_numbers_are_not_judged(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "a.pt", task="classify", labels=["x", "y"], size=32, arch="tresnet_s")
    content = torch.load(path, weights_only=True)
    content["model"]["stem.conv.weight"][0, 0, 0, 0] = float("nan")
    torch.save(content, path)
    pictures = in_memory(["x", "y"], [encode_png(np.zeros((32, 32, 3), np.uint8))] * 2, [[0], [1]])
    with pytest.raises(UserError, match="answers are no numbers"):
        evaluate_checkpoint(load_checkpoint(path), World(torch.device("cpu")), pictures=pictures)


def test_fitted_thresholds_beat_one_half() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((300, 3)) < 0.3).astype(np.float32)
    scores = np.clip(0.6 + 0.2 * targets + 0.05 * random.standard_normal((300, 3)), 0, 1).astype(np.float32)
    thresholds = best_thresholds(scores, targets)
    assert micro_f1(scores, targets, np.array(thresholds)) > 0.95 > micro_f1(scores, targets, 0.5)


@pytest.mark.parametrize(
    ("score", "below", "expected"),
    [(0.7, 0.3, 0.5), (4e-5, 2e-5, 3e-5), (0.99999, 0.99996, 0.99997), (1.0, 1 - 2**-24, 1.0), (4e-30, 2e-30, 4e-30)],
)
def test_a_threshold_is_rounded_no_further_than_it_separates(score: float, below: float, expected: float) -> None:
    """The larger score's picture has the tag, the other's has not, as the gateway compares them, too."""
    scores = np.array([[score], [below]], np.float32)
    [threshold] = best_thresholds(scores, np.array([[1], [0]], np.float32))
    assert threshold == pytest.approx(expected, rel=1e-6)
    assert [bool(one >= threshold) for [one] in scores] == [True, False]


def test_labels_that_look_like_formulas_are_drawn_as_they_are(tmp_path: Path) -> None:
    labels = ["$5 to $10", r"a $\frac$ b", "plain"]
    every = np.arange(3)
    write_report(tmp_path, Evaluation("classify", labels, np.eye(3, dtype=np.float32), every, None, {"ece": 0.0}))
    assert {path.name for path in tmp_path.glob("*.png")} == {"calibration.png", "confusion.png", "per_label.png"}


@pytest.mark.parametrize("name", ["exp{1}", "[x]"])
def test_the_bar_shows_the_runs_name_as_it_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    (tmp_path / name).mkdir()
    with RunLog(tmp_path / name, step=0, steps_per_epoch=1, epochs=1, batch_size=8, is_first=True) as log:
        log.step(1, {"loss": 1.0})
    assert name in capsys.readouterr().err


def test_asymmetric_loss_written_out() -> None:
    logits, targets = torch.tensor([[0.3, -1.2]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    p, q = torch.sigmoid(torch.tensor(0.3)), torch.sigmoid(torch.tensor(-1.2)) - 0.05
    expected = -torch.log(p) - q**4 * torch.log(1 - q)
    assert asymmetric_loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_asls_six_figures_equal_sklearns() -> None:
    random = np.random.default_rng(3)
    scores = random.random((200, 7)).astype(np.float32)
    targets = (random.random((200, 7)) < 0.4).astype(np.float32)
    figures, chosen = precision_recall_f1(scores, targets, 0.6), scores >= 0.6
    for letter, average in (("c", "macro"), ("o", "micro")):
        precision, recall, _, _ = precision_recall_fscore_support(targets, chosen, average=average)
        assert figures[f"{letter}p"] == pytest.approx(precision)
        assert figures[f"{letter}r"] == pytest.approx(recall)
        assert figures[f"{letter}f1"] == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_the_temperature_that_spoiled_the_logits_is_found(task: Any) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (4000, 5)).astype(np.float32)
    scores = to_scores(task, logits)
    if task == "classify":
        targets = (scores.cumsum(1) < random.random((4000, 1))).sum(1).clip(max=4)
    else:
        targets = (random.random(scores.shape) < scores).astype(np.float32)
    temperature = best_temperature(task, logits * 3, targets)
    assert temperature == pytest.approx(3, rel=0.05)
    before = expected_calibration_error(task, to_scores(task, logits * 3), targets)
    after = expected_calibration_error(task, to_scores(task, logits * 3, temperature), targets)
    assert after < 0.03 < before


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_a_dozen_pictures_that_are_all_right_do_not_make_a_model_sure(task: Any) -> None:
    targets = np.arange(12) % 3
    logits = (4 * np.eye(3)[targets] - 2).astype(np.float32)
    tags = np.eye(3, dtype=np.float32)[targets]
    assert 0.3 < best_temperature(task, logits, tags if task == "tag" else targets) < 1


def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "a.pt", task="tag", labels=["x", "y", "z"], size=32, arch="tresnet_s")
    content = torch.load(path, weights_only=True)
    for change, said in (
        ({"labels": ["x", "y"]}, "its weights are for 3 labels, and it names 2"),
        ({"thresholds": [0.5] * 7}, "facts or weights are missing or damaged"),
    ):
        torch.save(content | {"facts": content["facts"] | change}, path)
        refused = call_tresnet("export", path, "--task", "tag", "--name", "m", cwd=tmp_path)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "model_repository").exists()


def test_calibration_and_thresholds_travel_with_the_model(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "c.pt", task="tag", labels=list("abc"), size=32, arch="tresnet_s")
    content = torch.load(path, weights_only=True)
    content["facts"] |= {"temperature": 2.5, "thresholds": [0.2, 0.3, 0.4]}
    torch.save(content, path)
    options = ("--task", "tag", "--name", "m", "--max-batch-size", 2)
    exported = run_tresnet("export", "c.pt", *options, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    config = (tmp_path / "model_repository" / "m" / "config.pbtxt").read_text()
    assert all(text in config for text in (r"\"temperature\":2.5", "[0.2,0.3,0.4]"))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    scores = torch.jit.load(str(tmp_path / "model_repository" / "m" / "1" / "model.pt"))(pixels)[0]
    with torch.no_grad():
        logits = build_model(load_checkpoint(path))(pixels.permute(0, 3, 1, 2) / 255)
    assert torch.allclose(scores, (logits / 2.5).sigmoid(), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 10, 11])
@pytest.mark.parametrize("recipe", ["transfer", "coco", "digits"])
def test_however_few_steps_learn(recipe: str, steps: int) -> None:
    chosen = find_recipe(recipe)
    optimizer = create_optimizer(torch.nn.Linear(1, 1), chosen)
    schedule = create_schedule(optimizer, chosen, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0] / chosen.learning_rate)
        optimizer.step()
        schedule.step()
    highest = max(rates)
    assert highest > 0.5
    assert rates.index(highest) <= max(1, chosen.rise * steps)
    assert rates[rates.index(highest) :] == sorted(rates[rates.index(highest) :], reverse=True)


@pytest.mark.parametrize(
    ("pictures", "processes", "accumulate", "batch_size"),
    [(1000, 1, 1, 64), (100, 1, 1, 8), (10, 1, 1, 8), (10, 8, 2, 16), (10, 16, 4, 64), (10, 3, 1, 64), (100, 8, 1, 64)],
)
def test_a_small_batch_is_still_one_for_all_processes(
    pictures: int, processes: int, accumulate: int, batch_size: int
) -> None:
    recipe = replace(find_recipe("transfer"), accumulate=accumulate)
    assert recipe.fitted(pictures, processes).batch_size == batch_size


def test_of_thousands_of_labels_only_the_pairs_that_occur_are_written(tmp_path: Path) -> None:
    many, right = 3000, np.array([1, 1, 2000, 2999])
    scores = np.zeros((4, many), np.float32)
    scores[range(4), [1, 5, 2000, 5]] = 1
    labels = [f"label {index}" for index in range(many)]
    write_report(tmp_path, Evaluation("classify", labels, scores, right, None, {"ece": 0.5}))
    content = json.loads((tmp_path / "confusion.json").read_text())
    assert content["pairs"] == [[1, 1, 1], [1, 5, 1], [2000, 2000, 1], [2999, 5, 1]]
    assert not (tmp_path / "confusion.png").exists()


@pytest.mark.parametrize(("source", "target"), [("own", "bn"), ("bn", "own"), ("own", "own")])
def test_initial_weights_keep_what_the_network_computes(tmp_path: Path, source: Any, target: Any) -> None:
    torch.manual_seed(0)
    trained = create_model("tresnet_s", 4, source, block_slope=0.2)
    for module in trained.modules():
        if hasattr(module, "running_mean"):
            module.weight.data.uniform_(0.2, 1.0)
    facts = {"arch": "tresnet_s", "task": "classify", "labels": list("abcd"), "inplace_abn": source != "bn"}
    path = tmp_path / "c.pt"
    save_checkpoint(path, ModelFacts(**facts, preprocessing=Preprocessing(image_size=32)), trained.state_dict())
    fresh = create_model("tresnet_s", 4, target, block_slope=0.2)
    assert initialise(fresh, load_checkpoint(path), list("abcd"), inplace_abn=target != "bn") == []
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(trained.eval()(x), fresh.eval()(x), atol=1e-4)
    other = create_model("tresnet_s", 7, target)
    assert initialise(other, load_checkpoint(path), list("abcdefg"), inplace_abn=target != "bn") == HEAD


@pytest.mark.parametrize("recipe", ["transfer", None])
@pytest.mark.parametrize("labels", ["abcd", "abdc", "abce", "wxyz"])
def test_a_head_is_that_of_its_labels(tmp_path: Path, recipe: str | None, labels: str) -> None:
    """Published weights, which are of no recipe, may name the same classes otherwise than folders do."""
    how = Preprocessing(image_size=32)
    facts = ModelFacts(arch="tresnet_s", task="classify", labels=list("abcd"), preprocessing=how, recipe=recipe)
    save_checkpoint(tmp_path / "c.pt", facts, create_model("tresnet_s", 4, "own").state_dict())
    fresh = create_model("tresnet_s", 4, "own")
    kept = labels == "abcd" or (recipe is None and labels == "wxyz")
    expected = [] if kept else HEAD
    assert initialise(fresh, load_checkpoint(tmp_path / "c.pt"), list(labels), inplace_abn=True) == expected
