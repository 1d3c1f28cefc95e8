"""mosec: decoding in one kind of worker process, the model in another, batches between them."""

from __future__ import annotations

import json

import mosec

from benchmarks.serving.peers.common import MAX_BATCH_SIZE, load_program, prepare, prepare_encoded, run


class Decode(mosec.Worker):
    def deserialize(self, data):
        return data

    def forward(self, data):
        return prepare(data)


class Classify(mosec.Worker):
    def __init__(self):
        super().__init__()
        self.program = load_program()

    def forward(self, data):
        return run(self.program, data)


class DecodeSeveral(mosec.Worker):
    def deserialize(self, data):
        return json.loads(data)

    def forward(self, data):
        return prepare_encoded(data["images"])


class ClassifySeveral(Classify):
    pass


if __name__ == "__main__":
    server = mosec.Server()
    server.register_runtime(
        {
            "/classify": [
                mosec.Runtime(Decode, num=2, timeout=120),
                mosec.Runtime(Classify, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=5, timeout=120),
            ],
            "/several": [mosec.Runtime(DecodeSeveral, num=2, timeout=120), mosec.Runtime(ClassifySeveral, timeout=120)],
        }
    )
    server.run()
