"""The program that the bundled Triton makes of ``model.pt`` when it loads it on a CPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import random_checkpoint, run_tresnet

from export.packed_weights import pack_weights

_SIZE, _MAX_BATCH_SIZE = 40, 8


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.jit.ScriptModule]:
    """As exported, by precision."""
    folder = tmp_path_factory.mktemp("programs")
    weights = random_checkpoint(folder / "any.pt", task="tag", labels=["a", "b", "c"], size=_SIZE)
    programs = {}
    for precision in ("fp32", "bf16"):
        arguments = ("--task", "tag", "--name", precision, "--precision", precision)
        exported = run_tresnet("export", weights, *arguments, cwd=folder)
        assert exported.returncode == 0, exported.stderr
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            programs[precision] = torch.jit.load(str(folder / "model_repository" / precision / "1" / "model.pt")).eval()
    return programs


def _packed(program: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pack_weights(program, _SIZE, _MAX_BATCH_SIZE)


def _kinds(program: torch.jit.ScriptModule) -> list[str]:
    return [node.kind() for node in program.graph.nodes()]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_packed_weights_change_no_answer(
    programs: dict[str, torch.jit.ScriptModule], precision: str, tolerance: float
) -> None:
    """Three runs each: TorchScript rewrites a program after the first. bf16 is rounded once less than before."""
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU cannot compute in bf16 at all")
    program, packed = programs[precision], _packed(programs[precision])
    for batch_size in (1, 2, 3, _MAX_BATCH_SIZE):
        pictures = torch.randint(0, 256, (batch_size, _SIZE, _SIZE, 3), dtype=torch.uint8)
        for _ in range(3):
            with torch.inference_mode():
                (before, *_), (after, *_) = program(pictures), packed(pictures)
            torch.testing.assert_close(after, before, atol=tolerance, rtol=0)


def test_convolutions_are_packed_with_their_activations(programs: dict[str, torch.jit.ScriptModule]) -> None:
    before, after = _kinds(programs["fp32"]), _kinds(_packed(programs["fp32"]))
    assert after.count("mkldnn::_convolution_pointwise") > 10  # how many are worth it is for the CPU to say
    activations = ("aten::relu_", "aten::leaky_relu")
    assert sum(map(after.count, activations)) < sum(map(before.count, activations))
