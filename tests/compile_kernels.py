"""Compiles every fused kernel for cards that are not here; a JSON of what each one's machine code holds.

In a process of its own: where the Triton language is interpreted, nothing can be compiled.
"""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tresnet import kernels

TILE = {"ROWS": 32, "CHANNELS": 128}
SUMS = {"PARTS": 1024, "CHANNELS": 8}
CONSTANTS: dict[str, dict[str, Any]] = {
    "_moments_kernel": {"STEPS": 8, **TILE},
    "_statistics_kernel": SUMS,
    "_normalise_kernel": {"SPREAD_IS_VARIANCE": True, "ABN": True, "ACTIVATES": True, **TILE},
    "_gradient_sums_kernel": {"ACTIVATES": True, "STEPS": 8, **TILE},
    "_parameter_gradients_kernel": SUMS,
    "_input_gradient_kernel": {"ACTIVATES": True, **TILE},
    "_add_relu_kernel": {"ELEMENTS": 4096},
}
ACTIVATIONS = ("x", "y", "a", "b", "grad", "grad_x")
NUMBERS = {"rows": "i32", "channels": "i32", "parts": "i32", "elements": "i32"} | dict.fromkeys(
    ("momentum", "eps", "slope"), "fp32"
)
MULTIPLES_OF_16 = ("channels", "elements")


def compile_for(name: str, capability: int, dtype: str) -> dict[str, Any]:
    kernel, constants = getattr(kernels, name), CONSTANTS[name]
    names = kernel.arg_names
    types = {
        each: "constexpr" if each in constants else NUMBERS.get(each, f"*{dtype if each in ACTIVATIONS else 'fp32'}")
        for each in names
    }
    aligned = [each for each in names if types[each].startswith("*") or each in MULTIPLES_OF_16]
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(each),): value for each, value in constants.items()},
        attrs={(names.index(each),): [["tt.divisibility", 16]] for each in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    code = compiled.asm["ptx"]
    return {
        "kernel": name, "capability": capability, "dtype": dtype, "bytes": len(compiled.asm["cubin"]),
        "loads_16_bytes": "ld.global.v4.b32" in code, "spills": "ld.local" in code,
    }  # fmt: skip


if __name__ == "__main__":
    cases = [(80, "fp16"), (90, "fp16"), (90, "bf16"), (90, "fp32")]
    print(json.dumps([compile_for(name, *case) for name in CONSTANTS for case in cases]))
