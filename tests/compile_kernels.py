"""Compiles every fused kernel for cards that are not here; a JSON of what each one's machine code holds.

In a process of its own: where the Triton language is interpreted, nothing can be compiled.
"""

from __future__ import annotations

import json
import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tresnet import kernels

TILE = {"ROWS": 32, "CHANNELS": 128}
SUMS = {"PARTS": 1024, "CHANNELS": 8}
CONSTANTS: dict[str, dict[str, Any]] = {
    "_moments_kernel": TILE,
    "_statistics_kernel": SUMS,
    "_normalise_kernel": {"SPREAD_IS_VARIANCE": True, "ABN": True, "ACTIVATES": True, **TILE},
    "_gradient_sums_kernel": {"ACTIVATES": True, **TILE},
    "_parameter_gradients_kernel": SUMS,
    "_input_gradient_kernel": {"ACTIVATES": True, **TILE},
    "_add_relu_kernel": {"ELEMENTS": 4096},
}
WARPS = dict.fromkeys(("_moments_kernel", "_gradient_sums_kernel", "_input_gradient_kernel"), kernels._WARPS)
ACTIVATIONS = ("x", "y", "a", "b", "grad", "grad_x")
NUMBERS = {"rows": "i32", "channels": "i32", "parts": "i32", "steps": "i32", "elements": "i32"} | dict.fromkeys(
    ("momentum", "eps", "slope"), "fp32"
)


def compile_for(name: str, capability: int, dtype: str, divisor: int) -> dict[str, Any]:
    """For numbers of channels that ``divisor`` divides, and 16 too if it is 8, which is what a launch is told."""
    kernel, constants = getattr(kernels, name), CONSTANTS[name]
    names = kernel.arg_names
    if "DIVISOR" in names:
        constants = {"DIVISOR": divisor, **constants}
    types = {
        each: "constexpr" if each in constants else NUMBERS.get(each, f"*{dtype if each in ACTIVATIONS else 'fp32'}")
        for each in names
    }
    multiples_of_16 = ("channels", "elements") if divisor == 8 else ()
    aligned = [each for each in names if types[each].startswith("*") or each in multiples_of_16]
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(each),): value for each, value in constants.items()},
        attrs={(names.index(each),): [["tt.divisibility", 16]] for each in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": WARPS.get(name, 4)})
    code = compiled.asm["ptx"]
    loads = re.findall(r"ld\.global(?:\.\w+|::\w+)*?\.(?:v(\d)\.)?b(\d+)", code)
    return {
        "kernel": name, "capability": capability, "dtype": dtype, "divisor": divisor,
        "bytes": len(compiled.asm["cubin"]), "spills": "ld.local" in code,
        "widest_load": max(int(count or 1) * int(bits) // 8 for count, bits in loads),
    }  # fmt: skip


if __name__ == "__main__":
    cases = [
        (80, "fp16", 8), (90, "fp16", 8), (90, "bf16", 8), (90, "fp32", 8),
        (90, "fp16", 4), (90, "fp16", 2), (90, "fp16", 1),
    ]  # fmt: skip
    print(json.dumps([compile_for(name, *case) for name in CONSTANTS for case in cases]))
