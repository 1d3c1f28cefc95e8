"""BentoML with its adaptive batching."""

from __future__ import annotations

import bentoml
from PIL.Image import Image

from benchmarks.serving.peers.common import MAX_BATCH_SIZE, load_program, prepare_encoded, prepare_image, run


@bentoml.service(traffic={"timeout": 120, "max_concurrency": 1024})
class Classifier:
    def __init__(self) -> None:
        self.program = load_program()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=120_000)
    def classify(self, image: list[Image]) -> list[dict]:
        return run(self.program, [prepare_image(one.convert("RGB")) for one in image])

    @bentoml.api
    def several(self, images: list[dict]) -> list[dict]:
        return run(self.program, prepare_encoded(images))
