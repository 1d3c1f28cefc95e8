"""The benches for a GPU, at toy sizes on the CPU through the command line; and the program compiled ahead of time."""

from __future__ import annotations

import importlib.util
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from conftest import Server, call_tresnet, needs, run_side_by_side, run_tresnet, running_server
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from benchmarks.gpu_models import PACKAGE, Options, run_gpu_models
from benchmarks.gpu_networks import with_room
from benchmarks.gpu_report import RESULTS, place_for
from benchmarks.progress import DEADLINE
from benchmarks.timing import fits_in_memory, largest_batch, share_of
from commands.repository import read_repository
from export.verify import top1_agreement
from tresnet.devices import choose_device


@pytest.mark.parametrize(
    ("fitting", "timed"), [(0, 1), (1, 1), (2, 1), (3, 2), (37, 32), (288, 256), (511, 456), (512, 456), (2048, 1840)]
)
def test_the_largest_batch_is_found_in_few_tries(fitting: int, timed: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= fitting

    assert largest_batch(fits, limit=2048) == fitting
    assert max(tried) <= 2048 and len(tried) == len(set(tried)) <= 24
    assert share_of(fitting) == timed


def test_a_changed_best_label_counts_where_it_led_clearly() -> None:
    wanted = torch.tensor([[0.9, 0.1, 0.0], [0.34, 0.33, 0.33], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    got = torch.tensor([[0.8, 0.2, 0.0], [0.33, 0.34, 0.33], [0.2, 0.7, 0.1], [0.1, 0.7, 0.2]])
    assert top1_agreement(wanted, got, 0.05) == pytest.approx((2 / 4, 2 / 3))
    assert top1_agreement(wanted[:2], got[:2], 0.05) == (0.5, 1)
    assert top1_agreement(wanted[1:2], got[1:2], 0.05) == (0, 1)  # none is clear
    assert top1_agreement(wanted[:, :1], got[:, :1], 0.05) == (1, 1)


def test_toy_figures_and_a_cpus_are_not_kept_among_the_results(tmp_path: Path) -> None:
    real = {"date": "2000-01-01", "device": {"kind": "cuda"}}
    assert place_for("gpu-models", real, None) == RESULTS / "2000-01-01-gpu-models.json"
    assert place_for("gpu-models", real | {"tiny": "…"}, None) is None
    assert place_for("gpu-models", real | {"device": {"kind": "cpu"}}, None) is None
    assert place_for("gpu-models", real | {"tiny": "…"}, tmp_path / "x.json") == tmp_path / "x.json"


@pytest.mark.parametrize(
    ("options", "word"), [(("--write", "figures.txt"), ".json"), (("--workers", "4,0"), "--workers"),
                          (("--connections", "-1"), "--connections")],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, options: tuple[str, str], word: str
) -> None:
    refused = call_tresnet("bench", "gpu-service", "--device", "cpu", "--tiny", *options, cwd=tmp_path)
    assert (refused.returncode, word in refused.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_networks_programs_roofline_and_profile(tmp_path: Path) -> None:
    options = ("--networks", f"TResNet-M,ResNet50,{PACKAGE}", "--programs", "eager,frozen,CUDA graph of frozen",
               "--precision", "bf16", "--precisions", "fp32,fp16,bf16", "--profile", "TResNet-M",
               "--memory-gib", "16", "--deadline-s", "500")  # fmt: skip
    tiny = ("bench", "gpu-models", "--device", "cpu", "--tiny")
    wrong = call_tresnet(*tiny, "--networks", "AlexNet", cwd=tmp_path)
    done = run_tresnet(*tiny, *options, "--write", "figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (wrong.returncode, "AlexNet" in wrong.stderr) == (2, True)
    assert (tmp_path / "figures.png").stat().st_size > 0
    assert "ResNet50" in (tmp_path / "figures.txt").read_text() and "toy sizes" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert "nothing about speed" in figures["tiny"] and figures["device"] == {"kind": "cpu"}
    rows = {row["network"]: row for row in figures["networks"]}
    assert rows["ResNet50"]["parameters"] == 25_557_032
    has_package = importlib.util.find_spec("inplace_abn") is not None
    assert ("package's InPlace-ABN" in rows, "package's InPlace-ABN" in figures["skipped"]) == (
        has_package,
        not has_package,
    )
    for row in rows.values():
        # The limit: a CPU's memory is not searched.
        assert row["largest_train_batch"] == row["largest_infer_batch"] == 2
        assert min(row["train_images_per_s"] + row["infer_images_per_s"]) > 0
        assert min(row["infer_share"].values()) > 0 and row["train_share_of_matrix_rate"] > 0
        assert row["saved_mib"] > 0 and row["bytes_moved"] > row["multiply_adds"] / 1000
        assert (row["limited"], row["failed"]) == (True, None)
    assert rows["ResNet50"]["batch_limit"] == 2
    assert figures["ratios"].keys() == {"inference", "training"}  # of largest batches that are not the memory's, none
    assert figures["finished"]
    targets = {target["what"]: target for target in figures["targets"]}
    for what, at_least in (("inference", 1.04), ("training", 0.91)):
        assert targets[what]["at_least"] == at_least
        assert targets[what]["met"] == (figures["ratios"][what]["measured"] >= at_least)
    assert len(targets) == 3 and ("met" in done.stdout or "missed" in done.stdout)
    for name in ("ResNet50: round 1 of 1", "frozen fp16: round 1 of 1", "TResNet-M: profile of training"):
        assert f"{name}: " in done.stderr
    programs = {row["form"]: row for row in figures["serving_program"]}
    for form, most in (("eager fp32", 0.0), ("frozen fp32", 1e-4), ("eager bf16", 0.1), ("frozen bf16", 0.1),
                       ("eager fp16", 2e-2), ("frozen fp16", 2e-2)):  # fmt: skip
        assert programs[form]["max_score_distance"] <= most
        assert programs[form]["images_per_s"] > 0
        assert figures["serving_program_ratios"][form] > 0
    assert programs["frozen fp32"]["top1_agreement"] == 1
    assert "need CUDA" in programs["CUDA graph of frozen fp32"]["failed"]
    assert [entry["what"] for entry in figures["profile"]] == ["inference", "training"]
    for entry in figures["profile"]:
        shares = {group["group"]: group["share"] for group in entry["groups"]}
        assert {"convolution", "norm and activation", "blur", "squeeze-and-excite", "pooling"} <= shares.keys()
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)


def test_parts_run_alone_and_what_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ("bench", "gpu-models", "--device", "cpu", "--tiny", "--precision", "fp32")
    program = ("--networks", "", "--precisions", "fp32", "--programs", "AOTInductor,eager", "--write", "program.json")
    networks = ("--programs", "", "--networks", "TResNet-M,ResNet50", "--write", "networks.json")
    late = ("--deadline-s", "0", "--networks", "TResNet-M", "--programs", "eager", "--write", "late.json")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    failing = run_tresnet(*tiny, *program, cwd=tmp_path)
    done = run_side_by_side([(*tiny, *networks), (*tiny, *late)], cwd=tmp_path)
    assert [run.returncode for run in (failing, *done)] == [0, 0, 0], failing.stderr + done[0].stderr + done[1].stderr
    alone, others, nothing = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("program", "networks", "late")
    )
    rows = {row["form"]: row for row in alone["serving_program"]}
    assert "cannot compile" in rows["AOTInductor fp32"]["failed"] and rows["eager fp32"]["images_per_s"] > 0
    assert "AOTInductor fp32: round 1 of 1: " in failing.stderr
    assert alone["networks"] == [] and others["serving_program"] == [] and len(others["networks"]) == 2
    assert [row["failed"] for row in nothing["networks"] + nothing["serving_program"]] == [DEADLINE] * 4
    for name in ("program", "networks", "late"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0 and (tmp_path / f"{name}.txt").stat().st_size > 0


def test_figures_are_kept_as_they_come(tmp_path: Path) -> None:
    kept: list[dict[str, Any]] = []
    options = Options(torch.device("cpu"), networks=["TResNet-M"], programs=["eager"], precisions=("fp32",))
    run_gpu_models(options.made_tiny(), lambda _: None, lambda _: None, lambda figures: kept.append(deepcopy(figures)))
    assert [(len(figures["networks"]), len(figures["serving_program"])) for figures in kept] == [(0, 0), (1, 0), (1, 1)]
    assert not any(figures["finished"] for figures in kept)


@pytest.mark.parametrize(
    ("error", "is_size"),
    [(torch.OutOfMemoryError("out of memory"), True), (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
     (RuntimeError("GET was unable to find an engine to execute this computation"), True),
     (RuntimeError("input tensor must fit into 32-bit index math"), True),
     (RuntimeError("expected scalar type Half but found Float"), False)],
)  # fmt: skip
def test_a_batch_that_no_kernel_takes_does_not_fit(error: RuntimeError, is_size: bool) -> None:
    def work() -> None:
        raise error

    if is_size:
        assert not fits_in_memory(work)
    else:
        with pytest.raises(RuntimeError, match="scalar type"):
            fits_in_memory(work)


def test_a_batch_without_room_is_made_smaller_and_another_fault_is_told() -> None:
    tried: list[int] = []

    def measure(batch: int) -> str:
        tried.append(batch)
        if batch > 80:
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        if batch < 8:
            raise RuntimeError("expected scalar type Half but found Float")
        return "measured"

    assert with_room(100, measure) == (72, "measured")
    assert tried == [100, 88, 72]
    with pytest.raises(RuntimeError, match="scalar type"):
        with_room(7, measure)


def test_a_gpu_is_named_with_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")


def test_the_service_beside_the_bare_program(tmp_path: Path) -> None:
    needs("wrk")
    done = run_tresnet("bench", "gpu-service", "--device", "cpu", "--tiny", "--write", "figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    [row] = figures["rows"]
    assert (row["failed"], row["workers"], row["connections"]) == (0, 1, 4)
    assert min(row["images_per_s"], figures["bare_images_per_s"]) > 0
    assert figures["best"]["of_bare_program"] == pytest.approx(
        row["images_per_s"] / figures["bare_images_per_s"], rel=0.01, abs=1e-4
    )
    bounds = figures["best"]["bounds_images_per_s"]
    assert bounds.keys() == {"card", "serving program with its copies", "cores"} and min(bounds.values()) > 0
    assert bounds[figures["best"]["bound"]] == min(bounds.values())
    assert 1 <= row["batch_seen"] <= 4 and figures["best"]["batch_seen"] == round(row["batch_seen"])
    [target] = figures["targets"]
    assert (target["at_least"], target["met"]) == (0.8, figures["best"]["of_bare_program"] >= 0.8)
    assert figures["finished"] and figures["not_measured"] == []
    assert row["cpu_ms_per_image"].keys() == {"decoders", "model", "server", "triton"}
    assert row["cores_to_feed"] == pytest.approx(
        figures["bare_images_per_s"] * sum(row["cpu_ms_per_image"].values()) / 1000, abs=0.01
    )
    assert figures["decode_on_gpu"] == {"skipped": "nvJPEG needs CUDA"}
    assert figures["decode_on_cpu"]["images_per_s_and_core"] > 0
    assert (tmp_path / "figures.png").stat().st_size > 0


def test_a_program_compiled_ahead_of_time_serves_the_same_scores(
    models: Path, server: Server, digit_files: list[bytes], tmp_path: Path
) -> None:
    options = ("--task", "classify", "--name", "digits", "--max-batch-size", 4, "--device", "cpu")
    export = ("export", models / "runs" / "digits" / "best.pt", *options)
    done = run_tresnet(*export, "--format", "torch_aoti", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "model_repository" / "digits"
    assert sorted(path.name for path in (folder / "1").iterdir()) == [
        "model.pt2",
        "model.py",
        "model_card.md",
        "packed_weights.py",
    ]
    assert [version.fault for version in read_repository(tmp_path / "model_repository")] == [None]
    config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
    assert (config.platform, config.backend) == ("torch_aoti", "pytorch")
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    assert not config.HasField("dynamic_batching")  # Triton's backend would mix up the merged requests' outputs
    other = run_tresnet(*export, cwd=tmp_path)
    assert (other.returncode, "another format" in other.stderr) == (2, True)
    with running_server(tmp_path) as running:
        parts = [
            ("image", (f"{index}.png", digit)) for index, digit in enumerate(digit_files[:6])
        ]  # a batch of 4, and 2
        expected, got = (
            httpx.post(f"{url}/classify?model=digits&top_k=10", files=parts, timeout=30).json()["results"]
            for url in (server.url, running.url)
        )
    for ours, theirs in zip(got, expected, strict=True):
        scores = [{entry["label"]: entry["score"] for entry in result["predictions"]} for result in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
