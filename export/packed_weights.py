"""Weights as a CPU's convolutions want them, prepared once instead of in every run.

oneDNN computes convolutions with the weights in blocks of its own. TorchScript keeps them as they were trained, and has
them reordered in every run: for TResNet-M that is 10 ms, as soon as there are two pictures. Such blocks cannot be
saved, because every kind of CPU wants others; so this lies beside ``model.py`` in every version, which calls it when it
loads the program.
"""

from __future__ import annotations

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
"""Batches up to here may want their weights in another form than all larger ones."""


def pack_weights(program: torch.jit.ScriptModule, image_size: int, max_batch_size: int) -> torch.jit.ScriptModule:
    """``program`` for batches of 1 to ``max_batch_size`` ``uint8 [N, S, S, 3]`` pictures, with the same results.

    Every convolution whose weights oneDNN wants alike for each of these batches gets them so, together with the
    activation behind it.

    Raises:
        RuntimeError: where PyTorch cannot do it, or scores come out otherwise; ``program`` is as it was.
    """
    packed_program: torch.jit.ScriptModule = torch.jit.freeze(program)
    graph: Any = packed_program.graph
    convolutions = graph.findAllNodes("aten::conv2d")
    pictures = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    for convolution, shape in zip(convolutions, _input_shapes(graph, pictures), strict=True):
        weight, _, stride, padding, dilation, groups = [value.toIValue() for value in list(convolution.inputs())[1:]]
        if weight is None or groups != 1:
            continue
        blocks = {}
        for batch_size in {*range(1, min(max_batch_size, _SMALL) + 1), max_batch_size}:
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                weight, padding, stride, dilation, groups, [batch_size, *shape[1:]]
            )
            blocks[bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy())] = packed
        if len(blocks) == 1:
            _replace(graph, convolution, packed)
    torch._C._jit_pass_dce(graph)
    graph.lint()
    _check(packed_program, program, image_size)
    return packed_program


def _check(packed_program: torch.jit.ScriptModule, program: torch.jit.ScriptModule, image_size: int) -> None:
    """What this CPU cannot do after all, it says now. Three runs: TorchScript rewrites a program in the first two."""
    pictures = torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8)
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
