"""``explain=true``: where the network saw a label, through HTTP and through the exported file."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Server, random_checkpoint, run_tresnet, start_server
from google.protobuf import text_format
from PIL import Image
from test_http import post
from tritonclient.grpc import model_config_pb2 as pb

from benchmarks.heat_maps import share_inside
from tresnet.checkpoint import Checkpoint, build_model, load_checkpoint
from tresnet.contract import MAX_MAPPED_LABELS
from tresnet.picture import prepare


def plain_maps(checkpoint: Checkpoint, files: list[bytes]) -> np.ndarray:
    """``[N, C, h, w]``, as the paper on class activation maps writes it, from the eager network's own modules."""
    network = build_model(checkpoint)
    pixels = np.stack([prepare(file, checkpoint.facts.preprocessing).pixels for file in files])
    with torch.inference_mode():
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        x = network.stem(network.space_to_depth(x))
        for stage in (network.stage1, network.stage2, network.stage3, network.stage4):
            x = stage(x)
        return (torch.einsum("nfhw,cf->nchw", x, network.head.weight) / checkpoint.facts.temperature).numpy()


def test_a_heat_map_for_every_answered_label(server: Server, digit_files: list[bytes]) -> None:
    checkpoint = load_checkpoint(server.folder / "tagger.pt")
    [expected] = plain_maps(checkpoint, digit_files[:1])
    (result,) = post(server, "/tag?threshold=0&explain=true", digit_files[0]).json()["results"]
    assert result["heat_map_box"] == [0, 0, 64, 64]
    bias = build_model(checkpoint).head.bias.detach().numpy() / checkpoint.facts.temperature
    for tag in result["tags"]:
        heat_map, label = np.array(tag["heat_map"]), tag["label_id"]
        assert heat_map.shape == (2, 2)
        assert np.abs(heat_map - expected[label]).max() < 1e-3
        assert heat_map.mean() + bias[label] == pytest.approx(np.log(tag["score"] / (1 - tag["score"])), abs=1e-3)


def test_the_box_is_the_part_that_the_network_saw(server: Server) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((120, 60), 60).save(buffer, "PNG")
    (result,) = post(server, "/classify?explain=true&top_k=1", buffer.getvalue()).json()["results"]
    assert result["heat_map_box"] == [30, 0, 90, 60]  # digits crops the middle
    assert np.array(result["predictions"][0]["heat_map"]).shape == (1, 1)


def test_no_heat_maps_unless_asked(server: Server, digit_files: list[bytes]) -> None:
    (result,) = post(server, "/classify?embedding=true", digit_files[0]).json()["results"]
    assert "heat_map_box" not in result
    assert "heat_map" not in result["predictions"][0]
    assert len(result["embedding"]) == 2048


def test_asking_for_everything_at_once(server: Server, digit_files: list[bytes]) -> None:
    (result,) = post(server, "/classify?embedding=true&explain=true&top_k=10", digit_files[0]).json()["results"]
    assert len(result["embedding"]) == 2048
    assert all(entry["heat_map"] is not None for entry in result["predictions"])


def test_many_labels_and_models_without_heat_maps(tmp_path: Path, digit_files: list[bytes]) -> None:
    """The best labels alone have maps; a model that was published without goes on without, and says so."""
    labels = [f"tag {index}" for index in range(MAX_MAPPED_LABELS + 8)]
    random_checkpoint(tmp_path / "wide.pt", task="tag", labels=labels, size=32, arch="tresnet_s")

    def export(name: str) -> None:
        options = ("--task", "tag", "--name", name, "--max-batch-size", 2)
        done = run_tresnet("export", "wide.pt", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    export("wide")
    bare_of_before(tmp_path / "model_repository")
    export("bare")
    program = torch.jit.load(str(tmp_path / "model_repository" / "bare" / "1" / "model.pt"))
    assert len(program(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))) == 2
    server = start_server(tmp_path)
    try:
        server.wait_ready(100)
        (result,) = post(server, "/tag?model=wide&threshold=0&explain=true", digit_files[0]).json()["results"]
        given = [tag["heat_map"] is not None for tag in result["tags"]]
        assert given == [True] * MAX_MAPPED_LABELS + [False] * 8
        refused = post(server, "/tag?model=bare&explain=true", digit_files[0])
        assert (refused.status_code, refused.json()["code"]) == (422, "bad_parameter")
        assert "no heat maps" in refused.json()["detail"]
        assert post(server, "/tag?model=bare", digit_files[0]).status_code == 200
    finally:
        server.process.terminate()
        server.process.wait(40)


def bare_of_before(repository: Path) -> None:
    """The model "bare", as it looks if it was exported before there were heat maps; it has no version left."""
    shutil.copytree(repository / "wide", repository / "bare", ignore=shutil.ignore_patterns("1"))
    for path in (repository / "bare" / "config.pbtxt", repository / "bare" / "configs" / "embedded.pbtxt"):
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
        config.name = "bare"
        del config.output[2:]
        path.write_text(text_format.MessageToString(config))


def test_share_inside() -> None:
    inside = np.zeros((80, 80), bool)
    inside[:40, 40:] = True
    assert share_inside(np.array([[-1.0, 2.0], [2.0, -3.0]]), [0, 0, 80, 80], inside) == 0.5
    assert share_inside(np.array([[-1.0, -1.0]]), [0, 0, 80, 80], inside) == 0.0
