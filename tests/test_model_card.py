"""What training leaves for people, and its way through export to ``GET /models/{name}``."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import httpx
import pytest
from conftest import Server, call_tresnet, random_checkpoint, run_tresnet
from PIL import Image
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.events import EventFile


def rows(card: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, its first two lines left out."""
    section = card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines[2:]]


def test_a_card_says_what_came_of_the_run(models: Path) -> None:
    run = models / "runs" / "digits"
    card = (run / "model_card.md").read_text()
    figures = json.loads(run_tresnet("eval", "runs/digits/best.pt", "--json", cwd=models).stdout)
    scores = {name: float(value) for name, value, _ in rows(card, "Scores")}
    assert scores["top-1"] == pytest.approx(figures["top1"], abs=6e-4)
    assert scores["calibration error (ECE)"] == pytest.approx(figures["ece"], abs=6e-4)
    assert f"{figures['ece_raw']:.3f} without temperature" in card
    bins = [[float(cell) for cell in row[1:]] for row in rows(card, "Calibration")]
    assert sum(decisions for decisions, _, _ in bins) == 360
    assert sum(n * abs(said - right) for n, said, right in bins) / 360 == pytest.approx(figures["ece"], abs=2e-3)
    labels = {row[0]: int(row[1]) for row in rows(card, "Labels")}
    assert list(labels) == [str(digit) for digit in range(10)]
    counts = [[int(cell or 0) for cell in row[1:]] for row in rows(card, "Confusion")]
    assert [sum(row) for row in counts] == list(labels.values())
    assert sum(counts[digit][digit] for digit in range(10)) / 360 == pytest.approx(figures["top1"])
    assert dict(rows(card, "Data"))["training"] == "1,257"
    told = dict(rows(card, "Training"))
    assert (told["image size"], told["seed"]) == ("32", "0")
    assert "of none of the labels" in card.partition("## Limits")[2]
    assert "mirrored" not in told, "digits are not"
    for plot in ("calibration.png", "confusion.png", "curves.png", "per_label.png"):
        with Image.open(run / plot) as image:
            assert min(image.size) > 100


def test_a_card_of_tags(tmp_path: Path, digit_files: list[bytes]) -> None:
    lines = ["path,labels,split"]
    for number, digit in enumerate(load_digits().target[:60].tolist()):
        (tmp_path / f"{number}.png").write_bytes(digit_files[number])
        labels = (["even"] if digit % 2 == 0 else []) + (["small"] if digit < 5 else [])
        lines.append(f"{number}.png,{'|'.join(labels)},{'train' if number < 24 else 'val' if number < 40 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = ("--image-size", 20, "--batch-size", 8, "--epochs", 1, "--arch", "tresnet_s", "--precision", "fp32")
    trained = run_tresnet("train", "coco", "--data", tmp_path, "--out", "run", *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    card = (tmp_path / "run" / "model_card.md").read_text()
    evaluated = run_tresnet("eval", "run/best.pt", "--data", tmp_path, "--json", cwd=tmp_path)
    figures, scores = json.loads(evaluated.stdout), rows(card, "Scores")
    assert [name for name, _, _ in scores] == ["mAP", "CP", "CR", "CF1", "OP", "OR", "OF1", "calibration error (ECE)"]
    assert float(scores[0][1]) == pytest.approx(figures["map"], abs=6e-4)
    assert float(scores[6][1]) == pytest.approx(figures["f1"], abs=6e-4)
    assert scores[6][2] == f"{figures['of1']:.3f} with all thresholds at 0.5"
    table = json.loads((tmp_path / "run" / "per_label.json").read_text())
    assert [row[-2:] for row in rows(card, "Labels")] == [
        [f"{row['ap']:.3f}", f"{row['threshold']:.3f}"] for row in table
    ]
    assert "fewer than 20 pictures each" in card
    assert re.findall("^## (.*)$", card, re.MULTILINE)[:2] == ["Scores", "Limits"]
    assert ".png" not in card, "the card goes where no plots are"
    told = dict(rows(card, "Training"))
    assert told["random colours and shapes"] == "RandAugment"
    assert "mixup" not in told, "what is off is not told"
    shown = run_tresnet("eval", "run/best.pt", cwd=tmp_path).stdout
    assert "mean average precision" in shown
    assert json.loads(shown.splitlines()[-1])["map"] == figures["map"]


def test_tensorboard_shows_the_run(models: Path) -> None:
    run = models / "runs" / "digits"
    events = EventAccumulator(str(run)).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in losses
    ]
    top1 = [line["val_top1"] for line in lines if "epoch" in line]
    assert [event.value for event in events.Scalars("val/top1")] == pytest.approx(top1)


def test_tensorboard_forgets_what_a_killed_run_did_after_its_last_checkpoint(tmp_path: Path) -> None:
    for first, last, value in ((0, 6, 1.0), (3, 8, 2.0)):
        file = EventFile(tmp_path, first)
        for step in range(first + 1, last + 1):
            file.write("train", step, {"loss": value})
        file.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(step, 1 + (step > 3)) for step in range(1, 9)]


def test_the_card_travels_to_the_gateway(server: Server, models: Path) -> None:
    answer = httpx.get(f"{server.url}/models/digits").json()
    card = answer["card"]
    assert card.startswith((models / "runs" / "digits" / "model_card.md").read_text().rstrip())
    assert hashlib.sha256((models / "runs" / "digits" / "best.pt").read_bytes()).hexdigest() in card
    assert (models / "model_repository" / "digits" / "1" / "model_card.md").read_text() == card
    assert answer["labels"] == [str(digit) for digit in range(10)]
    listed = {model["name"]: model for model in httpx.get(f"{server.url}/models").json()["models"]}
    assert listed["digits"] == {key: value for key, value in answer.items() if key != "card"}
    assert httpx.get(f"{server.url}/models/digits", params={"version": "1"}).json() == answer


def test_weights_from_elsewhere_have_a_short_card(server: Server, models: Path) -> None:
    card = httpx.get(f"{server.url}/models/tagger").json()["card"]
    assert hashlib.sha256((models / "tagger.pt").read_bytes()).hexdigest() in card
    assert "Not measured here" in card
    assert all(word in card for word in ("tagger.pt", "tresnet_m", "40×40", "tag 4"))


@pytest.mark.parametrize(
    ("path", "code"), [("nothing", "unknown_model"), ("digits?version=9", "unknown_version"), ("digits/1", "not_found")]
)
def test_a_model_that_is_not_there(server: Server, path: str, code: str) -> None:
    answer = httpx.get(f"{server.url}/models/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, code)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_card_of_ones_own_and_what_the_export_changed(tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "c.pt", task="classify", labels=["a|b", "<b> *c* [d]"], size=32, arch="tresnet_s")
    (tmp_path / "own.md").write_text("# Mine\n\nFor lilies alone.\n")
    (tmp_path / "long.md").write_text("x" * 70_000)
    (tmp_path / "empty.md").write_text("\n")
    (tmp_path / "names").write_text("lily\nrose\n")
    base = ("export", "c.pt", "--task", "classify", "--max-batch-size", 2)

    def card(name: str, *options: object) -> str:
        done = run_tresnet(*base, "--name", name, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "model_repository" / name / "1" / "model_card.md").read_text()

    own = card("own", "--card", "own.md", "--labels", "names", "--image-size", 40)
    assert own.startswith("# Mine\n\nFor lilies alone.\n")
    assert re.search(r"not measured: image size 40\n", own)
    assert "- Labels were renamed at export\n" in own
    short = card("short")
    assert r"a\|b, &lt;b> \*c\* \[d]" in short
    assert not re.search("renamed|other preprocessing", short)
    renamed = card("renamed", "--labels", "names")
    assert "2 labels: lily, rose\n" in renamed
    assert "- Labels were renamed at export\n" in renamed
    for file, word in (("long.md", "characters"), ("empty.md", "empty")):
        refused = call_tresnet(*base, "--name", "refused", "--card", file, cwd=tmp_path)
        assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1)
        assert word in refused.stderr
        assert not (tmp_path / "model_repository" / "refused").exists()


def test_a_runs_card_names_the_labels_that_were_renamed_as_the_checkpoints(tmp_path: Path, models: Path) -> None:
    (tmp_path / "names").write_text("".join(f"number {digit}\n" for digit in range(10)))
    options = ("--task", "classify", "--name", "digits", "--labels", "names", "--max-batch-size", 2)
    done = run_tresnet("export", models / "runs" / "digits" / "best.pt", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "model_repository" / "digits" / "1" / "model_card.md").read_text()
    assert "- Labels were renamed at export: those above are the checkpoint's\n" in card
