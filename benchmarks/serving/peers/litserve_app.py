"""LitServe with its own batching; a body of several pictures is a batch by itself."""

import sys

import litserve
from fastapi import Request

from benchmarks.serving.peers.common import MAX_BATCH_SIZE, load_program, prepare, prepare_encoded, run


class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.program = load_program()

    def decode_request(self, request: Request):  # LitServe reads this annotation: here it is the form
        return prepare(request["image"].file.read())

    def batch(self, inputs):
        return inputs

    def predict(self, pictures):
        return run(self.program, pictures)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


class Several(litserve.LitAPI):
    def setup(self, device):
        self.program = load_program()

    def decode_request(self, request):
        return prepare_encoded(request["images"])

    def predict(self, pictures):
        return run(self.program, pictures)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    apis = [
        Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.005, api_path="/classify"),
        Several(api_path="/several"),
    ]
    litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, timeout=120).run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
