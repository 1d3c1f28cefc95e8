"""mosec: decoding in one kind of worker process, the model in another, batches between them."""

from __future__ import annotations

import mosec

from benchmarks.serving.peers.common import MAX_BATCH_SIZE, load_program, prepare, run


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


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Decode, num=2)
    server.append_worker(Classify, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=5)
    server.run()
