"""Labelled pictures in every form, read through the command line's own reader."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import tarfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call_tresnet

from training.augment import Augmentation, mix
from training.data import _split, _Steps, evaluation_batches, load_data
from training.distributed import World
from training.layouts import open_pictures
from training.pictures import Pictures, encode_png, from_paths, in_memory, without_bad
from training.recipes import find_recipe
from training.stopping import leave_stops_to_parent
from tresnet.errors import UserError
from tresnet.picture import Preprocessing

PNGS = [encode_png(np.full((24, 30, 3), 20 * number, np.uint8)) for number in range(6)]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def told(pictures: Pictures) -> list[tuple[bytes, list[str]]]:
    return [
        (pictures.read(index), [pictures.labels[label] for label in pictures.targets[index]])
        for index in range(len(pictures))
    ]


def test_folders_with_and_without_splits(tmp_path: Path) -> None:
    write(tmp_path / "train/cat/a.png", PNGS[0])
    write(tmp_path / "train/dog/deep/b.JPG", PNGS[1])
    write(tmp_path / "train/dog/notes.txt", b"not a picture")
    write(tmp_path / "validation/dog/c.png", PNGS[2])
    found = open_pictures(str(tmp_path))
    assert set(found) == {"train", "val"}
    assert told(found["train"]) == [(PNGS[0], ["cat"]), (PNGS[1], ["dog"])]
    assert told(open_pictures(str(tmp_path / "train"))["all"]) == told(found["train"])
    assert told(found["val"].relabelled(["cat", "dog"])) == [(PNGS[2], ["dog"])]


@pytest.mark.timeout(30)
def test_what_hides_and_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    write(tmp_path / "cat/a.png", PNGS[0])
    write(tmp_path / "cat/.ipynb_checkpoints/a-checkpoint.png", PNGS[0])
    (tmp_path / "cat/folder.png").mkdir()
    os.mkfifo(tmp_path / "cat/pipe.png")
    (tmp_path / "cat/linked.png").symlink_to(write(tmp_path / ".elsewhere/b.png", PNGS[1]))
    (tmp_path / "cat/up").symlink_to(tmp_path)
    assert told(open_pictures(str(tmp_path))["all"]) == [(PNGS[0], ["cat"]), (PNGS[1], ["cat"])]


def test_a_folder_beside_the_splits_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in ("train/cat/a", "train/dog/b", "eval/dog/c"):
        write(tmp_path / f"{place}.png", PNGS[0])
    assert set(open_pictures(str(tmp_path))) == {"train"}
    assert "not used, as splits are called train, val and test: eval" in caplog.text


def test_labels_of_the_splits_are_told_apart_by_name_alone(tmp_path: Path) -> None:
    for place in ("train/cat/a", "train/dog/b", "val/hund/c", "val/katze/d"):
        write(tmp_path / f"{place}.png", PNGS[0])
    pictures = open_pictures(str(tmp_path))
    with pytest.raises(UserError, match="that the training data does not have: hund, katze; it has cat, dog"):
        pictures["val"].relabelled(pictures["train"].labels, of="the training data")
    refused = call_tresnet("train", "transfer", "--data", tmp_path, "--image-size", 32, cwd=tmp_path)
    assert (refused.returncode, "the training data does not have: hund, katze" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["Training/cat/a", "Training/dog/b", "Testing/dog/c"], {"train": ["cat", "dog"], "test": ["dog"]}),
        (["Train/cat/a", "VALID/cat/b", "extra/c"], {"train": ["cat"], "val": ["cat"]}),
        (["train/cat/a", "test/unlabelled"], {"train": ["cat"]}),
        (["val/cat/a", "val/dog/b"], {"val": ["cat", "dog"]}),
        (["bus/a", "car/b", "train/c"], {"all": ["bus", "car", "train"]}),
        (["control/1/a", "test/2/b"], {"all": ["control", "test"]}),
    ],
)
def test_splits_by_other_names_and_labels_called_like_splits(
    tmp_path: Path, files: list[str], splits: dict[str, list[str]]
) -> None:
    for file in files:
        write(tmp_path / f"{file}.png", PNGS[0])
    assert {split: pictures.labels for split, pictures in open_pictures(str(tmp_path)).items()} == splits


def test_pictures_right_in_the_splits_have_no_label(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split / "a.png", PNGS[0])
    with pytest.raises(UserError, match="holds no labelled pictures"):
        open_pictures(str(tmp_path))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables(tmp_path: Path, kind: str) -> None:
    rows = [("x/0.png", "b|a", "train"), ("x/1.png", "", "train"), ("x/2.png", "c", "valid")]
    for number, (name, _, _) in enumerate(rows):
        write(tmp_path / name, PNGS[number])
    table = tmp_path / f"pictures.{kind}"
    if kind == "csv":
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("path", "labels", "split"), *rows])
    else:
        import pyarrow as pa
        from pyarrow import parquet

        columns = dict(zip(("path", "labels", "split"), map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pa.table(columns), table)
    found = open_pictures(str(table))
    assert told(found["train"]) == [(PNGS[0], ["b", "a"]), (PNGS[1], [])]
    assert told(found["val"]) == [(PNGS[2], ["c"])]


def test_tables_as_people_and_spreadsheets_write_them(tmp_path: Path) -> None:
    lines = ["\ufeffpath, labels, split", "a.png, cat | dog,Train", "b.png,dog ,train", "c.png"]
    write(tmp_path / "spaces.csv", "\r\n".join(lines).encode())
    found = open_pictures(str(tmp_path / "spaces.csv"))
    assert found["train"].labels == ["cat", "dog"]
    assert [*found["train"].targets, *found["all"].targets] == [[0, 1], [1], []]
    import pyarrow as pa
    from pyarrow import parquet

    for labels, targets in (
        ([["cat", "dog"], ["dog"], [], None], [[0, 1], [1], [], []]),
        (["dog", None, "cat", ""], [[1], [], [0], []]),
    ):
        parquet.write_table(pa.table({"path": list("abcd"), "labels": labels}), tmp_path / "lists.parquet")
        found = open_pictures(str(tmp_path / "lists.parquet"))
        assert (found["all"].labels, [*found["all"].targets]) == (["cat", "dog"], targets)


def test_coco(tmp_path: Path) -> None:
    write(tmp_path / "val2017/1.png", PNGS[1])
    write(tmp_path / "val2017/2.png", PNGS[2])
    content = {
        "images": [{"id": 7, "file_name": "1.png"}, {"id": 5, "file_name": "2.png"}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": [{"image_id": 7, "category_id": category} for category in (90, 90, 1)],
    }
    write(tmp_path / "annotations/instances_val2017.json", json.dumps(content).encode())
    found = open_pictures(str(tmp_path))["val"]
    assert found.labels == ["person", "toothbrush"]
    assert told(found) == [(PNGS[1], ["person", "toothbrush"]), (PNGS[2], [])]


def test_shards(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:04}.tar", "w") as tar:
            for number in range(3):
                add(tar, f"{number}.png", PNGS[3 * shard + number])
                add(tar, f"{number}.cls", str(number).encode())
    with tarfile.open(tmp_path / "val-0000.tar", "w") as tar:
        for name, content in {"a": [2, 0], "b": "cow", "c": None}.items():
            add(tar, f"{name}.json", json.dumps({"labels": content}).encode())
            add(tar, f"{name}.png", PNGS[0])
    assert told(open_pictures(str(tmp_path))["train"]) == [(PNGS[i], [str(i % 3)]) for i in range(6)]
    (tmp_path / "labels.txt").write_text("ant\nbee\ncow\n")
    found = open_pictures(str(tmp_path))
    assert told(found["train"])[4] == (PNGS[4], ["bee"])
    assert told(found["val"]) == [(PNGS[0], names) for names in (["cow", "ant"], ["cow"], [])]


def test_labels_of_one_name_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        add(tar, "a.png", PNGS[0])
        add(tar, "a.cls", b"3")
    (tmp_path / "labels.txt").write_text("\ufefftench\ncrane\nother\ncrane\n\n")
    with pytest.raises(UserError, match="more than one label is called 'crane'"):
        open_pictures(str(tmp_path))
    (tmp_path / "labels.txt").write_text("\ufefftench\ncrane\nother\ncrane, the machine\n\n")
    found = open_pictures(str(tmp_path))["train"]
    assert (found.labels[0], told(found)) == ("tench", [(PNGS[0], ["crane, the machine"])])


def test_rows_of_no_split_and_of_unknown_ones_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def load(*splits: str) -> list[int]:
        rows = [f"{number}.png,{'cat' if number % 2 else 'dog'},{split}" for number, split in enumerate(splits)]
        write(tmp_path / "table.csv", "\n".join(["path,label,split", *rows]).encode())
        recipe = find_recipe("transfer")
        data = load_data(recipe, recipe.preprocessing(), 0, str(tmp_path / "table.csv"))
        return [len(part) for part in (data.train, data.val, data.test)]

    with caplog.at_level("WARNING"):
        assert load("train", "train", "dev", "val", "val", "dev") == [2, 2, 2]
    assert "not used, as splits are called train, val and test: 2 of 'dev'" in caplog.text
    with pytest.raises(UserError, match="1 pictures are of no split, and 2 of 'train'"):
        load("train", "train", "", "val", "val")


def test_the_only_picture_of_its_class_is_to_train_on() -> None:
    classes = [0] * 30 + [1] * 30 + [2]
    pictures = in_memory(["a", "b", "c"], [b""] * len(classes), [[number] for number in classes])
    larger, smaller = _split(pictures, 0.1, seed=0)
    assert sorted(Counter(target[0] for target in smaller.targets).items()) == [(0, 3), (1, 3)]
    assert sorted([*larger.names, *smaller.names]) == list(pictures.names)


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})

    def part(*labels: int | None) -> object:
        rows = {"image": [{"bytes": png, "path": None} for png in PNGS[: len(labels)]], "label": labels}
        return datasets.Dataset.from_dict(rows, features=features)

    parts = {"train": part(1, -1, None, 0), "test": part(-1, -1)}  # as contests hide what is right
    monkeypatch.setattr(datasets, "load_dataset", lambda name: parts if name == "own/er" else 1 / 0)
    found = open_pictures("hf://own/er")
    assert {split: told(pictures) for split, pictures in found.items()} == {
        "train": [(PNGS[0], ["yes"]), (PNGS[3], ["no"])]
    }
    with pytest.raises(UserError, match="hf://other: could not be fetched"):
        open_pictures("hf://other")


def test_data_that_is_none_is_refused_in_one_sentence(tmp_path: Path) -> None:
    broken = {
        "table": ("labels.csv", b"file,class\na,b\n"),
        "coco": ("annotations/instances_train.json", b"{}"),
        "shards": ("train-0.tar", b"not a tar"),
        "idx": ("train-images-idx3-ubyte.gz", b"\x1f\x8bbroken"),
        "text": ("readme.txt", b"nothing here"),
    }
    for folder, (name, content) in broken.items():
        write(tmp_path / folder / name, content)
    for label in ("cat", "dog"):
        write(tmp_path / f"few/{label}/a.png", PNGS[0])
        write(tmp_path / f"few/{label}/b.png", PNGS[1])
    folders = [*broken, "text/readme.txt", "few"]
    for folder in folders:
        done = call_tresnet("train", "transfer", "--data", folder, "--out", f"run-{folder[:4]}", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        expected = "error: 2 training pictures are fewer than a batch" if folder == "few" else f"error: {folder}"
        assert expected in done.stderr, done.stderr
        assert ("its columns are file, class; wanted: path, and label" in done.stderr) == (folder == "table")
        assert not (tmp_path / f"run-{folder[:4]}").exists()


def test_content_of_another_form_is_told_with_its_file(tmp_path: Path) -> None:
    write(tmp_path / "coco/annotations/instances_train.json", b"[]")
    write(tmp_path / "short/labels.csv", b'path,label\na.png,"cat\nb.png,dog\n')
    write(tmp_path / "long/labels.csv", b'path,label\na.png,"cat\n' + b"b.png,dog\n" * 20_000)
    write(tmp_path / "idx/train-images-idx3-ubyte.gz", gzip.compress(bytes(99))[:10] + b"\xff" * 20)
    said = {"coco": "instances_train.json", "short": "labels.csv", "long": "labels.csv", "idx": "idx"}
    for name, content in (
        ("list", b'["cat"]'),
        ("nested", b'{"label": {"name": "cat"}}'),
        ("beyond", b'{"label": -1}'),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "labels.txt", b"cat\ndog\n")
        with tarfile.open(tmp_path / name / "train-0.tar", "w") as tar:
            add(tar, "a.png", PNGS[0])
            add(tar, "a.json", content)
        said[name] = "train-0.tar: a.json"
    for folder, named in said.items():
        with pytest.raises(UserError, match=f"{named}: cannot be read as labelled pictures: ."):
            open_pictures(str(tmp_path / folder))


def test_splits_that_nothing_can_be_measured_on_are_refused_before_the_first_step(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png", PNGS[number])
    splits = {"val.csv": "0.png,a|b,train\n1.png,,val\n", "test.csv": "0.png,a,train\n1.png,a,val\n2.png,,test\n"}
    for name, rows in splits.items():
        (tmp_path / name).write_text(f"path,labels,split\n{rows}")
    for recipe, data, expected in (
        ("coco", "val.csv", "none of the 1 validation pictures has a label"),
        ("coco", "test.csv", "none of the 1 test pictures has a label"),
        ("transfer", "test.csv", "pictures without a label or with several"),
    ):
        done = call_tresnet("train", recipe, "--data", data, "--batch-size", 2, "--out", "run", cwd=tmp_path)
        assert (done.returncode, expected in done.stderr) == (2, True), done.stderr


def test_pictures_that_cannot_be_read_are_named_or_skipped(tmp_path: Path) -> None:
    for number, png in enumerate(PNGS):
        write(tmp_path / f"cat/{number}.png", png)
    write(tmp_path / "cat/cut.png", PNGS[0][:60])
    write(tmp_path / "cat/text.jpg", b"hello")
    pictures, alone = open_pictures(str(tmp_path))["all"], World(torch.device("cpu"))
    with pytest.raises(UserError, match=r"2 of 8 pictures cannot be read(.|\n)*cut\.png(.|\n)*text\.jpg"):
        without_bad(pictures, skip_bad=False, world=alone)
    assert told(without_bad(pictures, skip_bad=True, world=alone)) == [(png, ["cat"]) for png in PNGS]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads beside a fork, from Python 3.12 on
def test_a_stop_ends_no_process_that_has_just_been_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches all of a run's processes, and the step under way still needs this one."""

    def late(worker: int) -> None:
        time.sleep(1)
        leave_stops_to_parent(worker)

    monkeypatch.setattr("training.data.leave_stops_to_parent", late)
    pictures = in_memory(["a"], [PNGS[0]] * 2, [[0]] * 2)
    loader: Any = evaluation_batches(pictures, Preprocessing(image_size=32), 1, World(torch.device("cpu")), tags=False)
    [worker] = loader._iterator._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert [len(batch) for batch, _ in loader] == [2]
    assert [len(batch) for batch, _ in loader] == [2], "the same process, once more"


def test_a_forked_process_copies_no_list_of_pictures() -> None:
    many = 200_000
    places = [Path(f"/data/train/label/{number:08}.jpg") for number in range(many)]
    pictures = from_paths(["a", "b"], places, [[number % 2] for number in range(many)]).select(range(many - 1, -1, -1))
    assert (pictures.names[1], pictures.targets[1]) == ("/data/train/label/00199998.jpg", [0])

    def own_kib() -> int:
        [line] = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "Private_Dirty" in line]
        return int(line.split()[1])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which the child needs
        child = os.fork()
    if not child:
        before = own_kib()
        read = sum(len(pictures.names[index]) + len(pictures.targets[index]) for index in range(many))
        os._exit(0 if read == many * 31 and own_kib() - before < 8 * 1024 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_variations_follow_from_their_numbers_alone() -> None:
    gradient = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    vary = Augmentation(Preprocessing(image_size=32), crop_area=(0.3, 1.0), policy="auto", cutout=0.5)
    pictures = [vary(encode_png(gradient), np.random.default_rng(seed)) for seed in (1, 2, 1)]
    assert pictures[0].shape == (32, 32, 3)
    assert pictures[0].dtype == np.uint8
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])


def test_mixed_targets_follow_the_mixed_pixels() -> None:
    x = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, 16, 16)[:, :3]
    for seed in range(20):
        random = np.random.default_rng(seed)
        mixed, targets = mix(x, torch.eye(4), mixup=0.5, cutmix=1.0, random=random)
        assert torch.allclose(mixed.mean((2, 3)), targets[:, :3], atol=1e-6)
        assert torch.allclose(targets.sum(1), torch.ones(4))


def test_processes_and_interruptions_do_not_change_a_batch() -> None:
    cpu = torch.device("cpu")
    whole = list(_Steps(50, 8, 3, 0, 7, World(cpu)))
    assert len(whole) == 18
    assert list(_Steps(50, 8, 3, 11, 7, World(cpu))) == whole[11:]
    halves = [list(_Steps(50, 8, 3, 0, 7, World(cpu, rank, 2))) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in whole]
    assert len({index for batch in whole[:6] for _, index in batch}) == 48
    assert whole[:6] != whole[6:12]
