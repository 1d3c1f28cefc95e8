"""The fused kernels: what they compute, and where they are used; without a GPU by the Triton language's interpreter."""

import copy
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import NUM_CLASSES, M, miniature
from tresnet import fused, inplace_abn, layers
from tresnet.errors import UserError
from tresnet.heads import linear_head
from tresnet.inplace_abn import InPlaceABN
from tresnet.model import TResNet, to_batch_norm

TILED = ("_moments_kernel", "_normalise_kernel", "_gradient_sums_kernel", "_input_gradient_kernel")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    with DEVICE:
        yield


@pytest.fixture
def kernels() -> ModuleType:
    pytest.importorskip("triton")
    return importlib.import_module("tresnet.kernels")


@pytest.fixture
def everywhere(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The network uses the kernels for every tensor; the tensors that it used them for."""
    used: list[Tensor] = []

    def kernels_for(x: Tensor) -> ModuleType:
        used.append(x)
        return kernels

    monkeypatch.setattr(inplace_abn, "kernels_for", kernels_for)
    monkeypatch.setattr(layers, "kernels_for", kernels_for)
    return used


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)


def relative(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("slope", [1.0, 1e-3])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize(
    ("shape", "programs"),
    [((2, 8, 5, 3), 1024), ((3, 76, 4, 4), 1024), ((2, 130, 3, 3), 1024), ((40, 16, 16, 16), 1024),
     ((40, 16, 16, 16), 16)],
)  # fmt: skip
def test_inplace_abn(
    kernels: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    programs: int,
    dtype: torch.dtype,
    most: float,
    slope: float,
) -> None:
    monkeypatch.setattr(kernels, "_PROGRAMS", programs)  # few sum several tiles each
    torch.manual_seed(0)
    exact = InPlaceABN(shape[1], slope).double()
    nn.init.normal_(exact.weight)
    nn.init.normal_(exact.bias)
    own = InPlaceABN(shape[1], slope)
    own.load_state_dict(exact.state_dict())
    x = (2 * channels_last(*shape) + 5).to(dtype).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    grad = channels_last(*shape, dtype=dtype)

    y = kernels.FusedInPlaceABN.apply(
        x, own.weight, own.bias, own.running_mean, own.running_var, own.momentum, own.eps, own.slope
    )
    y.backward(grad)
    expected = exact(x64)
    expected.backward(grad.double())

    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, expected) < most
    assert relative(x.grad, x64.grad) < 3 * most
    assert relative(own.weight.grad, exact.weight.grad) < 3 * most
    assert relative(own.bias.grad, exact.bias.grad) < most
    assert relative(own.running_mean, exact.running_mean) < 1e-6
    assert relative(own.running_var, exact.running_var) < 1e-5


def test_a_zero_weight_trains_in_half_precision(kernels: ModuleType) -> None:
    torch.manual_seed(0)
    x = channels_last(4, 8, 6, 6, dtype=torch.float16).requires_grad_()
    weight, bias = torch.zeros(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    y = kernels.FusedInPlaceABN.apply(x, weight, bias, torch.zeros(8), torch.ones(8), 0.1, 1e-5, 1.0)
    y.backward(channels_last(4, 8, 6, 6, dtype=torch.float16))
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(weight.grad).all()
    assert weight.grad.abs().max() > 0


@pytest.mark.parametrize("abn", [True, False])
def test_normalise(kernels: ModuleType, abn: bool) -> None:
    torch.manual_seed(0)
    x, (mean, weight, bias), var = channels_last(3, 76, 5, 4), torch.randn(3, 76), torch.rand(76) + 0.1
    gamma = weight.abs() + 1e-5 if abn else weight
    expected = F.leaky_relu(F.batch_norm(x, mean, var, gamma, bias, False, 0.0, 1e-5), 0.01)
    got = kernels.normalise(x, mean, var, weight, bias, 1e-5, 0.01, abn=abn)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_what_is_no_number_stays_none(kernels: ModuleType) -> None:
    x = channels_last(2, 8, 3, 3)
    x[0, 5] = torch.nan
    weight, bias, mean, var = torch.ones(8), torch.zeros(8), torch.zeros(8), torch.ones(8)
    y = kernels.FusedInPlaceABN.apply(x, weight, bias, mean, var, 0.1, 1e-5, 0.01)
    served = kernels.normalise(x, mean, var, weight, bias, 1e-5, 0.01, abn=True)
    fifth = torch.arange(8) == 5
    for result in (y, served):
        assert torch.equal(result.isnan().all(dim=3).all(dim=2).all(dim=0), fifth)
        assert torch.equal(result.isnan().any(dim=3).any(dim=2).any(dim=0), fifth)
    assert torch.equal(mean.isnan(), fifth)
    assert torch.equal(var.isnan(), fifth)
    assert torch.equal(kernels.FusedAddReLU.apply(x, x).isnan(), x.isnan())


def step(network: nn.Module, pictures: Tensor) -> list[Tensor]:
    """Logits, all gradients, and the statistics afterwards."""
    logits = network.train()(pictures)
    F.cross_entropy(logits, torch.arange(len(pictures))).backward()
    return [logits.detach(), *(parameter.grad for parameter in network.parameters()), *network.buffers()]


def test_a_network_trains_and_predicts_the_same(everywhere: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = TResNet(miniature(M), linear_head(miniature(M).num_features, NUM_CLASSES))
    network = network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, InPlaceABN):
            nn.init.normal_(module.weight)
    pictures = channels_last(4, 3, 64, 64)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    fused_one = copy.deepcopy(network)
    fused_step = step(fused_one, pictures)
    assert len(everywhere) > 15
    with torch.inference_mode():
        fused_logits = fused_one.eval()(pictures)
        fused_served = to_batch_norm(copy.deepcopy(fused_one))(pictures)
    monkeypatch.setattr(inplace_abn, "kernels_for", lambda _: None)
    monkeypatch.setattr(layers, "kernels_for", lambda _: None)
    for got, expected in zip(fused_step, step(network, pictures), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        logits = network.eval()(pictures)
    torch.testing.assert_close(fused_logits, logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fused_served, logits, rtol=1e-3, atol=1e-4)


def test_they_are_checked_before_they_are_used(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.inference_mode():
        fused.check(kernels, DEVICE)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(kernels, "normalise", lambda x, *_, **__: x)
    with pytest.raises(UserError, match="off by"):
        fused.check(kernels, DEVICE)


def test_they_compile_for_cards_that_are_not_here(kernels: ModuleType) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, root / "compile_kernels.py"],
        env={**environment, "PYTHONPATH": str(root.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    compiled = json.loads(ran.stdout)
    assert {each["kernel"] for each in compiled} == {name for name in vars(kernels) if name.endswith("_kernel")}
    for each in compiled:
        assert each["bytes"] > 0, each
        if each["divisor"] == 8 or each["kernel"] in TILED:
            assert each["widest_load"] >= 2 * each["divisor"], each
        assert not each["spills"], each


def test_they_are_for_cuda_alone() -> None:
    with torch.device("cpu"):
        assert fused.kernels_for(channels_last(1, 8, 4, 4)) is None


@pytest.mark.parametrize("size", [(5, 6), (2, 2), (2, 3), (3, 3), (8, 9)])
def test_blur_is_a_convolution_of_the_reflected_picture(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    blur = layers.BlurPool(3).double()
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    expected = F.conv2d(F.pad(x, [1] * 4, mode="reflect"), blur.filter, stride=2, groups=3)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(blur(x), expected)
    torch.testing.assert_close(torch.autograd.grad(blur(x), x, grad), torch.autograd.grad(expected, x, grad))
    with torch.no_grad():
        given = x.clone()
        torch.testing.assert_close(blur(given), expected)
        assert torch.equal(given, x)
