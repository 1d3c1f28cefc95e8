"""The program that the bundled Triton makes of ``model.pt`` when it loads it on a CPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import random_checkpoint, run_tresnet
from torch import Tensor, nn

from export.packed_weights import PackedProgram, pack_weights

_SIZE, _MAX_BATCH_SIZE = 40, 8


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.jit.ScriptModule]:
    """As exported, by precision."""
    folder = tmp_path_factory.mktemp("programs")
    weights = random_checkpoint(folder / "any.pt", task="tag", labels=["a", "b", "c"], size=_SIZE)
    programs = {}
    for precision in ("fp32", "bf16"):
        arguments = ("--task", "tag", "--name", precision, "--precision", precision, "--max-batch-size", 2)
        exported = run_tresnet("export", weights, *arguments, cwd=folder)
        assert exported.returncode == 0, exported.stderr
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            programs[precision] = torch.jit.load(str(folder / "model_repository" / precision / "1" / "model.pt")).eval()
    return programs


def _packed(program: torch.jit.ScriptModule, size: int = _SIZE, max_batch_size: int = _MAX_BATCH_SIZE) -> PackedProgram:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pack_weights(program, size, max_batch_size)


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
    before, after = _kinds(programs["fp32"]), _kinds(_packed(programs["fp32"]).programs[0])
    assert after.count("mkldnn::_convolution_pointwise") == before.count("aten::conv2d") - 3  # the blur's three stay
    activations = ("aten::relu_", "aten::leaky_relu")
    assert sum(map(after.count, activations)) < sum(map(before.count, activations))


def _form(weight: Tensor) -> bytes:
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(weight).numpy())


class _Widening(nn.Module):
    """One convolution, of a shape for which some CPUs want other weights for one picture than for more."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(256, 1024, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        wide = pictures.permute(0, 3, 1, 2).to(torch.float32).div(255).repeat(1, 86, 1, 1)[:, :256]
        features = torch.relu(self.convolution(wide.contiguous(memory_format=torch.channels_last)))
        return features.mean([2, 3]), features


@pytest.mark.parametrize("max_batch_size", [1, 5, 8, 32])
def test_each_size_of_batch_gets_the_weights_that_it_wants(max_batch_size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.jit.script(_Widening().eval().requires_grad_(False))
    packed = _packed(program, 14, max_batch_size)
    for batch_size in {1, 2, 3, max_batch_size - 1, max_batch_size} & set(range(1, max_batch_size + 1)):
        pictures = torch.randint(0, 256, (batch_size, 14, 14, 3), dtype=torch.uint8)
        with torch.inference_mode():
            torch.testing.assert_close(packed(pictures)[1], program(pictures)[1], atol=1e-4, rtol=0)
    assert len(packed.programs) == min(max_batch_size, 9)
    for batch_size, own in enumerate(packed.programs[:8], start=1):
        assert "aten::conv2d" not in _kinds(own)
        [weight] = own.graph.findAllNodes("prim::ConstantMKLDNNTensor")
        wanted = torch.ops.mkldnn._reorder_convolution_weight(
            program.convolution.weight, [0, 0], [1, 1], [1, 1], 1, [batch_size, 256, 14, 14]
        )
        assert _form(weight.t("value")) == _form(wanted)
