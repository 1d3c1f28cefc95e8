"""LitServe with its own batching."""

from __future__ import annotations

import sys

import litserve
from fastapi import Request

from benchmarks.serving.peers.common import MAX_BATCH_SIZE, load_program, prepare, run


class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.program = load_program()

    async def decode_request(self, request: Request):
        return prepare(await request.body())

    def batch(self, inputs):
        return inputs

    def predict(self, pictures):
        return run(self.program, pictures)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.005, api_path="/classify")
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
