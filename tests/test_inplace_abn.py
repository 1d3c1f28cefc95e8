"""In-place activated batch norm against the plain layer, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.networks import M, miniature, tresnet
from tresnet.inplace_abn import BatchNormAct, InPlaceABN, norm_class, resolve_norm


def plain(x: Tensor, weight: Tensor, bias: Tensor, slope: float, mean: Tensor, var: Tensor) -> Tensor:
    y = F.batch_norm(x, mean, var, weight.abs() + 1e-5, bias, True, 0.1, 1e-5)
    return F.leaky_relu(y, slope)


def implementations() -> list[str]:
    try:
        import inplace_abn  # noqa: F401
    except ImportError:
        return ["own"]
    return ["own", "package"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_our_own_whatever_is_installed(device: str) -> None:
    assert resolve_norm("auto", torch.device(device)) == "own"


@pytest.mark.parametrize("norm", implementations())
@pytest.mark.parametrize("slope", [1e-2, 1e-3, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_gradients_and_statistics(norm: str, slope: float, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    layer = norm_class(norm)(6, slope).to(dtype)  # type: ignore[arg-type]
    layer.weight.data = torch.tensor([1.0, -0.7, 0.4, -1.3, 0.9, 0.6], dtype=dtype)
    layer.bias.data = torch.randn(6, dtype=dtype) * 0.3
    x = torch.randn(4, 6, 5, 3, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    expected = plain(x, weight, bias, slope, mean, var)
    wanted = torch.autograd.grad(expected, (x, weight, bias), grad)
    y = layer(x * 1)
    got = torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)
    for ours, theirs in zip(
        (y, *got, layer.running_mean, layer.running_var), (expected, *wanted, mean, var), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def test_saves_half_of_what_batch_norm_saves() -> None:
    def saved(layer: torch.nn.Module) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.dim() == 4:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(2, 8, 16, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = layer(x * 1)
        assert kept.requires_grad
        return sum(storages.values())

    assert saved(InPlaceABN(8, 1e-3)) * 2 == saved(BatchNormAct(8, 1e-3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fresh_network_learns_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = tresnet(miniature(M), "own")().train()  # the last norm of each block is zero in it
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    with torch.autocast("cpu", dtype):
        loss = F.cross_entropy(network(torch.rand(4, 3, 32, 32)).float(), torch.arange(4))
    scaler.scale(loss).backward()
    parameters = dict(network.named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
    scaler.step(optimizer)
    for name in ("stem.conv.weight", "stage1.0.conv2.abn.weight", "stage4.0.conv3.abn.bias", "head.weight"):
        assert not torch.equal(parameters[name], before[name])


def test_slope_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="invertible"):
        InPlaceABN(4, 0.0)
