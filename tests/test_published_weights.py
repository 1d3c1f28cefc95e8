"""Published weights, exported by the command line, against the networks that they were published for."""

from __future__ import annotations

import argparse
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import call_tresnet, run_tresnet
from google.protobuf import text_format
from published import authors_form, ml_decoder, timm_network, two_linear
from torch import Tensor
from tritonclient.grpc import model_config_pb2 as pb

from tresnet.checkpoint import build_model, load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ARCHITECTURES = ("tresnet_m", "tresnet_l", "tresnet_xl", "tresnet_v2_l")


def export(file: Path, task: str, *options: object) -> tuple[torch.jit.ScriptModule, pb.ModelConfig, list[str]]:
    folder = file.parent
    arguments = ("--task", task, "--name", "m", "--repository", "repository", "--max-batch-size", 2)
    result = run_tresnet("export", file.name, *arguments, *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    model = folder / "repository" / "m"
    config = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
    return torch.jit.load(model / "1" / "model.pt"), config, (model / "labels.txt").read_text().splitlines()


def pictures(size: int) -> Tensor:
    noise = torch.rand(2, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(size))
    smooth = torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def planar(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) / 255


def assert_equal_scores(program: torch.jit.ScriptModule, expected: Tensor, x: Tensor) -> None:
    for _ in range(3):  # later runs are those that TorchScript has optimised
        with torch.no_grad():
            scores = program(x)[0]
    assert (scores - expected).abs().max() < 1e-4
    assert expected.std() > 1e-3  # or the comparison would prove nothing


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("size", [96, *(pytest.param(size, marks=pytest.mark.slow) for size in (224, 448))])
def test_scores_equal_the_published_network(arch: str, size: int, tmp_path: Path) -> None:
    network = timm_network(arch, 37)
    files = [tmp_path / "authors" / "w.pth", tmp_path / "timm" / "w.safetensors"]
    for file in files:
        file.parent.mkdir()
    torch.save({"model": {f"module.{k}": v for k, v in authors_form(network).items()}}, files[0])
    safetensors.torch.save_file(network.state_dict(), files[1])
    x = pictures(size)
    with torch.no_grad():
        expected = network(planar(x)).softmax(1)
        for file in files:
            scores = build_model(load_checkpoint(file, task="classify", image_size=size)).eval()(planar(x)).softmax(1)
            assert (scores - expected).abs().max() < 1e-4
    # An export of a large one takes half a minute; how it is done depends on the architecture, not on the file.
    chosen = files[:1] if size == 96 and arch != "tresnet_m" else files
    with ThreadPoolExecutor(2) as pool:
        exported = list(pool.map(lambda file: export(file, "classify", "--image-size", size), chosen))
    for program, config, labels in exported:
        assert_equal_scores(program, expected, x)
        assert json.loads(config.parameters["version.1"].string_value)["architecture"] == arch
        assert labels[:2] == ["class_0", "class_1"]


@pytest.fixture(scope="module")
def thousand_classes() -> torch.nn.Module:
    return timm_network("tresnet_m", 1000)


@pytest.mark.parametrize("size", [224, 448])
def test_at_the_published_sizes(size: int, thousand_classes: torch.nn.Module, tmp_path: Path) -> None:
    network = thousand_classes
    torch.save({"state_dict": authors_form(network)}, tmp_path / "w.pth")
    program, config, labels = export(tmp_path / "w.pth", "classify", *(["--image-size", 448] if size == 448 else []))
    x = pictures(size)
    with torch.no_grad():
        assert_equal_scores(program, network(planar(x)).softmax(1), x)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert list(config.input[0].dims) == [size, size, 3]
    assert parameters["resize_mode"] == ("crop" if size == 224 else "squash")
    assert float(parameters["crop_pct"]) == (0.875 if size == 224 else 1.0)
    assert (labels[0], labels[207], len(set(labels))) == ("tench", "golden retriever", 1000)


def test_slopes_of_v2_l(tmp_path: Path) -> None:
    """Those of the weights for cars are known by their labels' number, others are told."""
    x = pictures(64)
    cars, other = (timm_network("tresnet_v2_l", classes, slope=1e-6) for classes in (196, 50))
    for name, network in (("cars.pth", cars), ("w.pth", other)):
        torch.save({"model": authors_form(network)}, tmp_path / name)
    converted = build_model(load_checkpoint(tmp_path / "cars.pth", task="classify", image_size=64)).eval()
    program, _, _ = export(tmp_path / "w.pth", "classify", "--image-size", 64, "--negative-slope", "1e-6")
    with torch.no_grad():
        expected = cars(planar(x)).softmax(1)
        assert (converted(planar(x)).softmax(1) - expected).abs().max() < 1e-4 and expected.std() > 1e-3
        assert_equal_scores(program, other(planar(x)).softmax(1), x)


@pytest.mark.parametrize("head", ["two_linear", "ml_decoder", "ml_decoder_groups"])
def test_heads_of_many_labels(head: str, tmp_path: Path) -> None:
    network = timm_network("tresnet_l" if head == "two_linear" else "tresnet_m", 0)
    torch.manual_seed(5)
    if head == "two_linear":
        entries, logits = two_linear(64, 45, network.num_features)
    else:
        entries, logits = ml_decoder(*((80, 80) if head == "ml_decoder" else (20, 45)), network.num_features)
    classes = len(list(entries.values())[-1])
    names = {index: f"thing\n {index}" for index in range(classes)}
    body = {key: value for key, value in authors_form(network).items() if key.startswith("body.")}
    arguments = argparse.Namespace(lr=0.1)  # as training scripts leave them
    known = {"num_classes": classes, "idx_to_class": names, "args": arguments}
    torch.save({"model": body | entries, **known}, tmp_path / "w.pth")
    program, config, labels = export(tmp_path / "w.pth", "tag", "--image-size", 128)
    x = pictures(128)
    with torch.no_grad():
        assert_equal_scores(program, logits(network.forward_features(planar(x))).sigmoid(), x)
        assert torch.allclose(program(x)[1], network.forward_features(planar(x)).mean((2, 3)), atol=1e-3)
        if head == "two_linear":
            _, _, maps, mapped = program(x)
            bias = logits(torch.zeros(1, network.num_features, 1, 1))[0]
            expected = logits(network.forward_features(planar(x))).gather(1, mapped)
            assert torch.allclose(maps.mean((2, 3)) + bias[mapped], expected, atol=1e-3)
        else:
            assert len(program(x)) == 2  # its logits are no means of maps
    assert labels == [f"thing {index}" for index in range(classes)]
    assert config.parameters["resize_mode"].string_value == "squash"


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    state = authors_form(timm_network("tresnet_m", 5))
    torch.save({"model": state}, tmp_path / "good.pth")
    torch.save({k: v for k, v in state.items() if ".layer3.10." not in k}, tmp_path / "shallow.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "headless.pth")
    torch.save({k: v for k, v in state.items() if "layer1.0.conv2.1" not in k}, tmp_path / "incomplete.pth")
    torch.save({"model": state, "idx_to_class": {0: "a"}}, tmp_path / "misnamed.pth")
    torch.save({"model": state, "idx_to_class": {"a": "a"}}, tmp_path / "misindexed.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    torch.save({"model": RunsCode(tmp_path / "ran")}, tmp_path / "code2.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:10_000_000])
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{1234567")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    cases = [(path.name,) for path in tmp_path.glob("*.*th*") if path.name != "good.pth"]
    cases += [("broken.safetensors",), ("good.pth", "--labels", "labels.txt")]
    cases += [
        ("good.pth", "--arch", "tresnet_l"),
        ("good.pth", "--image-size", "30"),
        ("good.pth", "--negative-slope", "0.5", "--mean", "a,b"),
    ]
    assert len(cases) == 15
    for case in cases:
        refused = call_tresnet("export", *case, "--task", "classify", "--name", "m", cwd=tmp_path)
        assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1), (case, refused.stderr)
    assert not (tmp_path / "model_repository").exists()
    assert not (tmp_path / "ran").exists()


def test_weights_that_cannot_be_fetched_are_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there, on whatever machine
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    export = ("export", "hf://timm/tresnet_m.miil_in1k", "--task", "classify", "--name", "m")
    refused = run_tresnet(*export, cwd=tmp_path)
    assert refused.returncode == 2
    begun, sentence = refused.stderr.strip().splitlines()
    assert begun.startswith("fetching hf:") and sentence.startswith("error: ")
    assert not (tmp_path / "model_repository").exists()
