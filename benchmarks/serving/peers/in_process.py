"""The route that people write first: FastAPI, and the model in the same process, in its pool of threads."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.serving.peers.common import load_program, prepare, prepare_encoded, run

app = FastAPI()
program = load_program()


@app.post("/classify")
async def classify(request: Request):
    data = await request.body()
    return (await run_in_threadpool(lambda: run(program, [prepare(data)])))[0]


@app.post("/several")
def several(body: dict):
    return run(program, prepare_encoded(body["images"]))
