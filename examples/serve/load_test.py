"""Load on both servers, on this machine: latency, throughput, a thousand streams, bad requests.

    python examples/serve/load_test.py            # three to four minutes on two cores
    python examples/serve/load_test.py --quick    # a few requests of each kind

Starts the servers, asks them for single sequences from several clients at once, and then opens a
thousand streams, each with a sequence of its own, whose last output is compared with that of the
whole sequence. All along, requests that are wrong in every way known are sent in between; each has
to be answered by its error. Client and servers share the processor, so a server alone is faster.
Exits with 1 if any answer was wrong.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import client
import grpc
import httpx
import numpy as np
import websockets
from served import MOST_STEPS, ServedModel
from tensorflow_serving.apis import prediction_service_pb2_grpc

FEATURES = 8
TOLERANCE = 1e-5
ROW = [0.5] * FEATURES
# The body of a wrong request for a prediction, and what the answer has to say.
BAD_REST = [
    (b"{", "the request must be JSON"),
    (b"[1]", "the request must be a JSON object"),
    (b"{}", "either instances or inputs"),
    ({"instances": []}, "at least one sample"),
    ({"instances": [[]]}, "rows must be float32 of shape (any, any, 8), not (1, 0)"),
    ({"instances": [[ROW[1:]]]}, "rows must be float32 of shape (any, any, 8), not (1, 1, 7)"),
    ({"instances": [[ROW, ROW], [ROW]]}, "its rows differ in length"),
    ({"instances": [[["a"] * FEATURES]]}, "something other than numbers"),
    ({"instances": [[[True] * FEATURES]]}, "something other than numbers"),
    ({"instances": [[[float("nan")] * FEATURES]]}, "rows must be finite"),
    ({"instances": [[[1e300] * FEATURES]]}, "rows must be finite"),
    ({"instances": [[ROW] * (MOST_STEPS + 1)]}, f"rows may have {MOST_STEPS} time steps at most"),
    ({"inputs": {"columns": [[ROW]]}}, "inputs must be rows, not columns"),
    ({"instances": [[ROW]], "signature": "step"}, "instances, signature_name, not signature"),
    ({"signature_name": "train", "instances": [[ROW]]}, "signature_name must be one of"),
]
BAD_GRPC = [
    ({"rows": np.zeros((1, 1, 7), "float32")}, "rows must be float32 of shape (any, any, 8)"),
    ({"rows": np.zeros((1, 0, 8), "float32")}, "and is empty: (1, 0, 8)"),
    ({"rows": np.full((1, 1, 8), np.nan, "float32")}, "rows must be finite"),
    ({"rows": np.zeros((1, MOST_STEPS + 1, 8), "float32")}, "time steps at most"),
    ({"rows": np.array([[["a"] * 8]])}, "something other than numbers"),
    ({"columns": np.zeros((1, 1, 8), "float32")}, "inputs must be rows, not columns"),
    ({}, "inputs must be rows, not nothing"),
]
BAD_STEPS = [
    ("{", "the request must be JSON"),
    ({}, "inputs must be rows, not nothing"),
    ({"rows": ROW[1:]}, "rows must be float32 of shape (any, 8), not (1, 7)"),
    ({"rows": []}, "not (1, 0)"),
    ({"rows": [float("inf")] * FEATURES}, "rows must be finite"),
    (
        {"rows": ROW, "gated_rnn_hidden": [0.0] * 64},
        "inputs must be rows, not rows, gated_rnn_hidden",
    ),
]


class Load:
    """What is asked of the servers, and what came of it.

    Attributes:
        wrong: sentences on answers that were not what they should have been.
        refused: how many bad requests were answered by their errors.
    """

    def __init__(self, model, http_port, grpc_port):
        self.model = model
        self.http, self.grpc = f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
        self.wrong, self.refused = [], 0
        self.rng = np.random.default_rng(0)

    def sequences(self, count, steps):
        """Random ones, and what the model gives for them when it is run here."""
        rows = self.rng.normal(size=(count, steps, FEATURES)).astype("float32")
        parts = np.array_split(rows, -(-count // 256))
        found = [self.model.run("serving_default", {"rows": part})["digit"] for part in parts]
        return rows, np.concatenate(found)

    def compare(self, given, expected, what):
        difference = float(np.abs(np.asarray(given) - expected).max())
        if not difference <= TOLERANCE:
            self.wrong.append(f"{what}: differs by {difference:.2g}")

    def check_refusal(self, text, expected, what):
        if expected in text:
            self.refused += 1
        else:
            self.wrong.append(f"{what}: expected {expected!r}, got {text!r}")

    async def predictions(self, ask, clients, requests, steps):
        """Single sequences from so many clients at once: seconds per request, and of it all."""
        rows, expected = self.sequences(requests, steps)
        waiting, seconds = iter(range(requests)), []

        async def one_client():
            for index in waiting:
                begun = time.perf_counter()
                found = await ask(rows[index : index + 1])
                seconds.append(time.perf_counter() - begun)
                self.compare(found, expected[index : index + 1], f"sequence {index}")

        await ask(rows[:1])
        begun = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(clients)))
        return seconds, time.perf_counter() - begun

    async def streams(self, open_stream, sessions, steps):
        """So many streams at once, each with a sequence of its own: as `predictions`, per step.

        Args:
            open_stream: function of the number of a stream to an asynchronous context manager, of a
                coroutine function from a row to the output so far.
        """
        rows, expected = self.sequences(sessions, steps)
        seconds, opened, start = [], 0, asyncio.Event()

        async def one_stream(index):
            nonlocal opened
            async with open_stream(index) as step:
                opened += 1
                if opened == sessions:  # all at once
                    start.set()
                await start.wait()
                for row in rows[index]:
                    begun = time.perf_counter()
                    found = await step(row)
                    seconds.append(time.perf_counter() - begun)
            self.compare(found, expected[index], f"stream {index}")

        tasks = [asyncio.create_task(one_stream(index)) for index in range(sessions)]
        try:
            await start_or_failure(start, tasks)
            begun = time.perf_counter()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return seconds, time.perf_counter() - begun

    @contextlib.asynccontextmanager
    async def websocket_stream(self, index):
        """Over a WebSocket; every tenth stream makes mistakes on the way."""
        address = f"ws://{self.http}/v1/models/digits/stream"
        mistakes = itertools.cycle(BAD_STEPS) if index % 10 == 0 else None
        async with websockets.connect(address, open_timeout=120, ping_timeout=None) as stream:

            async def step(row):
                if mistakes:
                    body, expected = next(mistakes)
                    body = body if isinstance(body, str) else json.dumps(body)
                    await stream.send(body)
                    answer = json.loads(await stream.recv())
                    self.check_refusal(answer.get("error", "no error"), expected, body)
                await stream.send(json.dumps({"rows": row.tolist()}))
                return json.loads(await stream.recv())["digit"]

            yield step

    @contextlib.asynccontextmanager
    async def grpc_stream(self, index, stub):
        """By gRPC, with the states here."""
        request = client.predict_request("initial_state", batch_size=np.int32(1))
        states = client.arrays(await stub.Predict(request))

        async def step(row):
            nonlocal states
            request = client.predict_request("step", rows=row[None], **states)
            states = client.arrays(await stub.Predict(request))
            return states.pop("digit")[0]

        yield step

    async def bad_rest(self, session):
        """Wrong requests, one after the other, for ever."""
        encoded = [(b if isinstance(b, bytes) else json.dumps(b).encode(), e) for b, e in BAD_REST]
        for body, expected in itertools.cycle(encoded):
            response = await session.post(self.predict_url, content=body)
            text = response.json().get("error", "no error") if response.is_error else "no error"
            self.check_refusal(f"{response.status_code} {text}", expected, body[:80])
            await asyncio.sleep(0.02)

    async def bad_grpc(self, stub):
        for inputs, expected in itertools.cycle(BAD_GRPC):
            try:
                await stub.Predict(client.predict_request(**inputs))
                text = "no error"
            except grpc.aio.AioRpcError as error:
                text = error.details()
                if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
                    text = error.code().name
            self.check_refusal(text, expected, str(inputs)[:80])
            await asyncio.sleep(0.02)

    @property
    def predict_url(self):
        return f"http://{self.http}/v1/models/digits:predict"


async def start_or_failure(start, tasks):
    """Waits until all streams are open, or one has failed, which is raised."""
    started = asyncio.create_task(start.wait())
    await asyncio.wait([started, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            await task


@contextlib.asynccontextmanager
async def all_along(wrong_requests):
    """Has a coroutine run until the block ends; an error in it is raised there."""
    task = asyncio.create_task(wrong_requests)
    try:
        yield
    finally:
        if task.done():
            await task
        task.cancel()


@contextlib.contextmanager
def server(script, folder):
    """A server in a process of its own, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), script)
    with subprocess.Popen([sys.executable, path, folder, "--port", str(port)]) as process:
        try:
            wait_for(port, process)
            yield port
        finally:
            process.terminate()


def wait_for(port, process):
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def shown(name, seconds, whole, unit):
    p50, p95, p99 = 1e3 * np.percentile(seconds, [50, 95, 99])
    return f"| {name} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {len(seconds) / whole:,.0f} {unit}s/s |"


async def test(load, quick):
    """Everything; prints a table."""
    requests, steps, sessions = (40, 12, 30) if quick else (3000, 100, 1000)
    limits = httpx.Limits(max_connections=100)
    channel = grpc.aio.insecure_channel(load.grpc)
    async with httpx.AsyncClient(limits=limits, timeout=120) as session, channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        async def rest(rows):
            response = await session.post(load.predict_url, json={"instances": rows.tolist()})
            response.raise_for_status()
            return response.json()["predictions"]

        async def by_grpc(rows):
            return client.arrays(await stub.Predict(client.predict_request(rows=rows)))["digit"]

        print(f"| {steps} steps | p50 ms | p95 ms | p99 ms | throughput |\n|---|---|---|---|---|")
        for name, ask, bad in (
            ("REST", rest, lambda: load.bad_rest(session)),
            ("gRPC", by_grpc, lambda: load.bad_grpc(stub)),
        ):
            for clients in (1, 32):
                async with all_along(bad()):
                    found = await load.predictions(ask, clients, requests, steps)
                print(shown(f"{name}, clients: {clients}", *found, "sequence"), flush=True)
        async with all_along(load.bad_rest(session)):
            found = await load.streams(load.websocket_stream, sessions, steps)
        print(shown(f"WebSocket, streams: {sessions:,}", *found, "step"), flush=True)
        async with all_along(load.bad_grpc(stub)):
            found = await load.streams(lambda i: load.grpc_stream(i, stub), sessions, steps)
        print(shown(f"gRPC, streams: {sessions:,}", *found, "step"), flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="out/served/digits", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few requests of each kind")
    arguments = parser.parse_args(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a stream is a file; children inherit it
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    model = ServedModel(arguments.model)
    with (
        server("http_server.py", arguments.model) as http_port,
        server("grpc_server.py", arguments.model) as grpc_port,
    ):
        load = Load(model, http_port, grpc_port)
        asyncio.run(test(load, arguments.quick))
    print(f"\nbad requests answered by their errors: {load.refused:,}; wrong answers: ", end="")
    print("\n  ".join([str(len(load.wrong)), *load.wrong[:10]]))
    return int(bool(load.wrong))


if __name__ == "__main__":
    sys.exit(main())
