"""Serves the model.pt or model.pt2 beside this file from Triton's Python backend, for want of the PyTorch backend.

Copied into every version of the model repository as ``model.py`` and used by the ``embedded`` configuration
alone. Tensors cross by DLPack in both directions: nothing is copied through numpy.
"""

import faulthandler
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils

Program = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

_WORTH_WAKING_S = 0.003
"""What a batch has to take on one thread before others are woken for it."""
_TIMED_RUNS, _TIMED_S = 10, 0.2


class ThriftyProgram:
    """``program``, on one thread for batches that end before others would be awake, else on all of PyTorch's.

    They sleep between two runs (docs/decisions/0004-batch-when-busy.md) and are waited for in each of its parallel
    sections: of a program that takes a fraction of a millisecond, two threads make twice as much.
    """

    def __init__(self, program: Program, image_size: int) -> None:
        self.program = program
        self.threads = torch.get_num_threads()
        self.most_alone = int(_WORTH_WAKING_S / self._time_alone(image_size))
        """The largest batch for one thread."""

    @torch.inference_mode()
    def _time_alone(self, image_size: int) -> float:
        """What one picture takes on one thread: the least of some runs, in seconds."""
        picture = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
        runs_s: list[float] = []
        torch.set_num_threads(1)
        try:
            while len(runs_s) < _TIMED_RUNS and sum(runs_s) < _TIMED_S:
                started = time.perf_counter()
                self.program(picture)
                runs_s.append(time.perf_counter() - started)
        finally:
            torch.set_num_threads(self.threads)
        return min(runs_s)

    def __call__(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.set_num_threads(1 if len(pictures) <= self.most_alone else self.threads)
        return self.program(pictures)


@torch.inference_mode()
def meet_batches(program: Program, image_size: int, max_batch_size: int, device: torch.device) -> None:
    """Run batches of 1, 2, 4 … pictures and of the largest size, each twice.

    What a GPU's libraries and TorchScript's compiler prepare for a size that they have not met, the first pictures that
    come in such a batch would wait for.
    """
    for size in sorted({1 << power for power in range(max_batch_size.bit_length())} | {max_batch_size}):
        pictures = torch.zeros(size, image_size, image_size, 3, dtype=torch.uint8, device=device)
        for _ in range(2):
            program(pictures)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class HangWatch:
    """Ends this process when a run has not ended after so many seconds; where it hung stands in Triton's log then.

    Triton would wait for ever; what has lost its process is loaded anew (app/model_control.py). Seconds are counted by
    looks, so that those in which the whole machine was held do not count.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._run: object = None
        threading.Thread(target=self._look, name="hang-watch", daemon=True).start()

    @contextmanager
    def over_a_run(self) -> Iterator[None]:
        self._run = object()
        try:
            yield
        finally:
            self._run = None

    def _look(self) -> None:
        seen, looks = None, 0
        while looks < self._limit_s:
            time.sleep(1)
            before, seen = seen, self._run
            looks = looks + 1 if seen is not None and seen is before else 0
        print(f"a run has not ended for {looks} s; its process ends, from here:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        os._exit(1)


class TritonPythonModel:
    """Triton creates one for each model instance, each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        limit_s = config["parameters"].get("run_timeout_s", {}).get("string_value", "inf")
        self.hang_watch = HangWatch(float(limit_s))
        if self.device.type == "cpu" and _is_bf16(config, args["model_version"]) and not _cpu_has_bf16():
            pb_utils.Logger.log_warn(
                "this program computes in bf16, which this CPU does not have: it will be slow; export it as fp32"
            )
        image_size, max_batch_size = config["input"][0]["dims"][0], config["max_batch_size"]
        self.load(Path(args["model_repository"]) / args["model_version"], image_size, max_batch_size)
        if self.device.type == "cuda":
            meet_batches(self.program, image_size, max_batch_size, self.device)

    def load(self, version: Path, image_size: int, max_batch_size: int) -> None:
        self.program: Program
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            index = -1 if self.device.index is None else self.device.index
            if (package := version / "model.pt2").exists():
                self.program = torch._inductor.aoti_load_package(str(package), device_index=index)
                return
            self.program = torch.jit.load(str(version / "model.pt"), map_location=self.device).eval()
            if self.device.type == "cpu":
                self.pack(image_size, max_batch_size)
                with suppress(RuntimeError):  # what cannot run says so when it is asked
                    self.program = ThriftyProgram(self.program, image_size)

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
        with self.hang_watch.over_a_run():
            results = dict(zip(self.outputs, self.program(pictures.to(self.device)), strict=True))
            asked = {name: results[name].cpu().contiguous() for name in request.requested_output_names()}
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor.from_dlpack(name, torch.to_dlpack(asked[name])) for name in asked]
        )


def _is_bf16(config, version):
    facts = config["parameters"].get(f"version.{version}", {}).get("string_value", "{}")
    return json.loads(facts).get("precision") == "bf16"


def _cpu_has_bf16():
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
