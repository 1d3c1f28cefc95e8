"""BentoML with its adaptive batching."""

from __future__ import annotations

import bentoml
from PIL import Image

from benchmarks.serving.peers.common import MAX_BATCH_SIZE, load_program, prepare_image, run


@bentoml.service(traffic={"timeout": 60, "max_concurrency": 1024})
class Classifier:
    def __init__(self) -> None:
        self.program = load_program()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=60_000, route="/classify")
    def classify(self, image: list[Image.Image]) -> list[dict]:
        return run(self.program, [prepare_image(one.convert("RGB")) for one in image])
