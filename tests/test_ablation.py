"""The paper's refinements, each turned off, and the bench that compares them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call_tresnet, run_tresnet
from torch import nn

from benchmarks.ablation import saved_bytes
from benchmarks.networks import ablation_networks
from tresnet.heads import linear_head
from tresnet.layers import BlurPool, FastGlobalPool, SpaceToDepth, SqueezeExcite
from tresnet.model import VARIANTS, TResNet

M = VARIANTS["tresnet_m"]


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        ({"stem": "conv7x7"}, SpaceToDepth),
        ({"stem": "resnet_d"}, SpaceToDepth),
        ({"blur": False}, BlurPool),
        ({"squeeze_excite": False}, SqueezeExcite),
        ({"fast_pool": False}, FastGlobalPool),
    ],
)
def test_each_refinement_can_be_turned_off(change: dict[str, Any], absent: type[nn.Module]) -> None:
    variant = replace(M, **change)
    model = TResNet(variant, linear_head(variant.num_features, 7))
    with torch.device("meta"):
        assert any(isinstance(module, absent) for module in TResNet(M, linear_head(M.num_features, 7)).modules())
    assert not any(isinstance(module, absent) for module in model.modules())
    maps: list[torch.Tensor] = []
    model.stage4.register_forward_hook(lambda *called: maps.append(called[2]))
    model(torch.rand(2, 3, 96, 96)).sum().backward()
    assert maps[0].shape == (2, 2048, 3, 3)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_saved_activations_stay_below_the_promised_bound() -> None:
    x = torch.rand(2, 3, 224, 224)
    makers = ablation_networks("own")
    mib = {name: saved_bytes(makers[name](), x) / 2 / 2**20 for name in ("TResNet-M", "batch norm", "ResNet50")}
    assert mib["TResNet-M"] <= 50
    assert mib["batch norm"] > 1.4 * mib["TResNet-M"]
    assert mib["ResNet50"] == pytest.approx(82, abs=5)


def test_the_bench_prints_and_writes_its_figures(tmp_path: Path) -> None:
    options = ("--networks", "TResNet-M,none of them", "--image-size", 64, "--batch-size", 2, "--rounds", 1)
    done = run_tresnet("bench", "ablation", *options, "--write", "figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["network"]: row for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    assert rows["TResNet-M"]["parameters"] == 31_389_032
    assert rows["none of them"]["parameters"] == pytest.approx(25_557_032, rel=0.01)  # ResNet50's
    assert rows["TResNet-M"]["largest_batch"] > rows["none of them"]["largest_batch"]
    assert "TResNet-M" in done.stdout
    wrong = call_tresnet("bench", "ablation", "--networks", "AlexNet", cwd=tmp_path)
    assert (wrong.returncode, "AlexNet" in wrong.stderr) == (2, True)
