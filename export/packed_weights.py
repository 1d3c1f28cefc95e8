"""Weights as a CPU's convolutions want them, prepared once instead of in every run.

oneDNN computes convolutions with the weights in blocks of its own. TorchScript keeps them as they were trained, and has
them reordered in every run: for TResNet-M that is 10 ms, as soon as there are two pictures. Such blocks cannot be
saved, because every kind of CPU wants others; so this lies beside ``model.py`` in every version, which calls it when it
loads the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ACTIVATIONS = {
    "aten::relu": "relu",
    "aten::relu_": "relu",
    "aten::leaky_relu": "leaky_relu",
    "aten::leaky_relu_": "leaky_relu",
}
_SCORE_TOLERANCE = 0.02
"""bf16 is rounded once less when an activation is computed with its convolution."""
_SMALL = 8
"""Batches up to here are asked one by one which weights they want, and then the largest alone."""


class PackedProgram:
    """``programs[n - 1]`` for a batch of ``n`` pictures, and the last one for all that are larger."""

    def __init__(self, programs: Sequence[torch.jit.ScriptModule]) -> None:
        self.programs = programs

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = self.programs[min(len(pictures), len(self.programs)) - 1](pictures)
        return results


def pack_weights(program: torch.jit.ScriptModule, image_size: int, max_batch_size: int) -> PackedProgram:
    """``program`` for batches of 1 to ``max_batch_size`` ``uint8 [N, S, S, 3]`` pictures, with the same results.

    Convolutions get their weights as oneDNN wants them for that size of batch, together with the activation behind
    them. Sizes that want the same share a program, and programs share the weights that they want alike. Grouped
    convolutions stay as they are, and above eight pictures those for which eight and the largest batch differ.

    Raises:
        RuntimeError: where PyTorch cannot do it, or scores come out otherwise; ``program`` is as it was.
    """
    generator = torch.Generator().manual_seed(0)  # whether a model is packed is no matter of luck
    pictures = torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8, generator=generator)
    sizes = sorted({*range(1, min(max_batch_size, _SMALL) + 1), max_batch_size})
    graph = torch.jit.freeze(program).graph
    shapes = _input_shapes(graph, pictures)
    convolutions = graph.findAllNodes("aten::conv2d")
    wanted = [_wanted_weights(*each, sizes) for each in zip(convolutions, shapes, strict=True)]
    made: dict[tuple[int, ...], torch.jit.ScriptModule] = {}
    programs = []
    for batch_size, weights in zip(sizes, zip(*wanted, strict=True), strict=True):
        key = tuple(map(id, weights))
        if key not in made:
            made[key] = _with_weights(program, weights)
            _check(made[key], program, pictures[:batch_size])
        programs.append(made[key])
    return PackedProgram(programs)


def _wanted_weights(convolution: Any, input_shape: torch.Size, sizes: list[int]) -> list[Tensor | None]:
    """The weights for each of these sizes of batch, one tensor for those that want the same; None: as they are."""
    weight, _, stride, padding, dilation, groups = [value.toIValue() for value in list(convolution.inputs())[1:]]
    if weight is None or groups != 1:
        return [None] * len(sizes)
    forms: dict[bytes, Tensor] = {}
    wanted: list[Tensor | None] = []
    for batch_size in sizes:
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, padding, stride, dilation, groups, [batch_size, *input_shape[1:]]
        )
        form = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy())
        wanted.append(forms.setdefault(form, packed))
    if len(sizes) > 1 and sizes[-1] > sizes[-2] + 1 and wanted[-1] is not wanted[-2]:
        wanted[-1] = None  # of the sizes between the two nothing is known
    return wanted


def _with_weights(program: torch.jit.ScriptModule, weights: Sequence[Tensor | None]) -> torch.jit.ScriptModule:
    packed_program: torch.jit.ScriptModule = torch.jit.freeze(program)
    graph: Any = packed_program.graph
    for convolution, packed in zip(graph.findAllNodes("aten::conv2d"), weights, strict=True):
        if packed is not None:
            _replace(graph, convolution, packed)
    torch._C._jit_pass_dce(graph)
    graph.lint()
    return packed_program


def _check(packed_program: torch.jit.ScriptModule, program: torch.jit.ScriptModule, pictures: Tensor) -> None:
    """What this CPU cannot do after all, it says now. Three runs: TorchScript rewrites a program in the first two."""
    scores = program(pictures)[0]
    for _ in range(3):
        if not torch.allclose(packed_program(pictures)[0], scores, rtol=0, atol=_SCORE_TOLERANCE):
            raise RuntimeError("packed weights change the scores")


def _input_shapes(graph: Any, pictures: Tensor) -> list[torch.Size]:
    """What each convolution gets when ``graph`` runs, in order."""
    probe = graph.copy()
    inputs = [next(convolution.inputs()) for convolution in probe.findAllNodes("aten::conv2d")]
    seen = probe.create("prim::ListConstruct", inputs, 1)
    seen.output().setType(torch._C.ListType.ofTensors())
    probe.appendNode(seen)
    probe.eraseOutput(0)
    probe.registerOutput(seen.output())
    probe.eraseInput(0)  # the module itself, of which freezing has left nothing
    return [tensor.shape for tensor in torch._C._create_function_from_graph("shapes", probe)(pictures)]


def _replace(graph: Any, convolution: Any, packed: Tensor) -> None:
    """The convolution, and the activation behind it, by one operator that takes ``packed`` weights."""
    image, _, bias, stride, padding, dilation, groups = convolution.inputs()
    activation, slopes, last = "none", [], convolution
    users = [use.user for use in convolution.output().uses()]
    if len(users) == 1 and users[0].kind() in _ACTIVATIONS:
        [last] = users
        activation = _ACTIVATIONS[last.kind()]
        slopes = [float(value.toIValue()) for value in list(last.inputs())[1:]]

    def insert(kind: str, *inputs: Any) -> Any:
        return graph.insertNode(graph.create(kind, list(inputs), 1))

    with graph.insert_point_guard(convolution):
        weight = insert("prim::ConstantMKLDNNTensor").t_("value", packed)
        scalars = insert("prim::ListConstruct", *[graph.insertConstant(slope) for slope in slopes])
        scalars.output().setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
        fused = insert(
            "mkldnn::_convolution_pointwise",
            image, weight.output(), bias, padding, stride, dilation, groups,
            graph.insertConstant(activation), scalars.output(), graph.insertConstant(None),
        )  # fmt: skip
    last.output().replaceAllUsesWith(fused.output())
    if last is not convolution:
        last.destroy()
    convolution.destroy()
