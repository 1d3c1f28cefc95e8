"""Serves the model.pt or model.pt2 beside this file from Triton's Python backend, for want of the PyTorch backend.

Copied into every version of the model repository as ``model.py`` and used by the ``embedded`` configuration
alone. Tensors cross by DLPack in both directions: nothing is copied through numpy.
"""

import json
import warnings
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton creates one for each model instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        if self.device.type == "cpu" and _is_bf16(config, args["model_version"]) and not _cpu_has_bf16():
            pb_utils.Logger.log_warn(
                "this program computes in bf16, which this CPU does not have: it will be slow; export it as fp32"
            )
        version = Path(args["model_repository"]) / args["model_version"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            index = -1 if self.device.index is None else self.device.index
            if (package := version / "model.pt2").exists():
                self.program = torch._inductor.aoti_load_package(str(package), device_index=index)
                return
            self.program = torch.jit.load(str(version / "model.pt"), map_location=self.device).eval()
            if self.device.type == "cpu":
                self.pack(image_size=config["input"][0]["dims"][0], max_batch_size=config["max_batch_size"])

    def pack(self, image_size: int, max_batch_size: int) -> None:
        with torch.inference_mode():
            try:
                from packed_weights import pack_weights

                self.program = pack_weights(self.program, image_size, max_batch_size)
            except Exception as error:  # it serves as well without
                pb_utils.Logger.log_warn(f"weights stay as they are, which costs some milliseconds a run: {error}")

    def execute(self, requests):  # type: ignore[no-untyped-def]
        """Triton gives one request at a time: the gateway forms the batches, and the configuration has none merged."""
        return [self.answer(request) for request in requests]

    @torch.inference_mode()
    def answer(self, request):  # type: ignore[no-untyped-def]
        """One run of the program, unless the caller has left or its deadline has passed while the request waited."""
        if request.is_cancelled():
            gone = pb_utils.TritonError("nobody waits for this answer any more", pb_utils.TritonError.CANCELLED)
            return pb_utils.InferenceResponse(error=gone)
        pictures = torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, self.input).to_dlpack())
        results = dict(zip(self.outputs, self.program(pictures.to(self.device)), strict=True))
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor.from_dlpack(name, torch.to_dlpack(results[name].cpu().contiguous()))
                for name in request.requested_output_names()
            ]
        )


def _is_bf16(config, version):
    facts = config["parameters"].get(f"version.{version}", {}).get("string_value", "{}")
    return json.loads(facts).get("precision") == "bf16"


def _cpu_has_bf16():
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
