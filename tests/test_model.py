"""The network against the release's published facts."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tresnet.layers import BlurPool, FastGlobalPool, SpaceToDepth, SqueezeExcite
from tresnet.model import VARIANTS, create_model, to_batch_norm
from tresnet.terms import Arch

PUBLISHED = {
    "tresnet_m": (31_389_032, 5.737),
    "tresnet_l": (55_989_256, 10.878),
    "tresnet_xl": (78_436_244, 15.167),
    "tresnet_v2_l": (46_174_824, 8.814),
}


def test_every_architecture_can_be_named() -> None:
    assert set(VARIANTS) == set(get_args(Arch))


@pytest.mark.parametrize("arch", PUBLISHED)
def test_parameters_and_multiply_adds(arch: str) -> None:
    parameters, gmacs = PUBLISHED[arch]
    with torch.device("meta"):
        model = create_model(arch, 1000).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_space_to_depth_order() -> None:
    x = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    y = SpaceToDepth()(x)
    for dy in range(4):
        for dx in range(4):
            for c in range(3):
                assert torch.equal(y[:, (dy * 4 + dx) * 3 + c], x[:, c, dy::4, dx::4])


def test_what_comes_channels_last_stays_so() -> None:
    """Else every operator behind it that meets both layouts would read one of them across."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 12).contiguous(memory_format=torch.channels_last)
    y = SpaceToDepth()(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, SpaceToDepth()(x.contiguous()))
    excite, pool = SqueezeExcite(8, 4).double(), FastGlobalPool()
    given = torch.randn(2, 8, 4, 6, dtype=torch.double).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(excite(given).square().sum() + pool(given).square().sum(), given)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(excite, given)
    assert torch.autograd.gradcheck(pool, given)


def test_space_to_depth_refuses_odd_sizes() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        SpaceToDepth()(torch.zeros(1, 3, 30, 32))


def test_blur_keeps_constants_and_rounds_up() -> None:
    y = BlurPool(2)(torch.full((1, 2, 7, 9), 3.0))
    assert y.shape == (1, 2, 4, 5)
    assert torch.allclose(y, torch.tensor(3.0))


@pytest.mark.parametrize(
    ("arch", "hidden"), [("tresnet_m", 128), ("tresnet_l", 152), ("tresnet_xl", 166), ("tresnet_v2_l", 128)]
)
def test_squeeze_excite_widths(arch: str, hidden: int) -> None:
    with torch.device("meta"):
        model = create_model(arch, 10)
    assert model.stage1[0].se.fc1.out_channels == 64
    assert model.stage3[0].se.fc1.out_channels == hidden
    assert isinstance(model.stage4[0].se, torch.nn.Identity)


@pytest.mark.parametrize("arch", PUBLISHED)
def test_scripted_batch_norm_form_equals_the_network(arch: str) -> None:
    torch.manual_seed(0)
    model = create_model(arch, 7)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            torch.nn.init.normal_(module.weight, 0.8, 0.2)
            module.weight.data[::3] *= -1
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(4, 3, 32, 32))
        x = torch.rand(2, 3, 32, 32)
        expected = model.eval()(x)
        scripted = torch.jit.script(to_batch_norm(model))
        assert torch.allclose(scripted(x), expected, atol=1e-4 * expected.std().item() + 1e-6)
