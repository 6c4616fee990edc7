"""Serves a SavedModel over HTTP: TensorFlow Serving's REST API, and live data over WebSockets.

    python examples/serve/http_server.py out/served/digits --port 8501

    POST /v1/models/digits:predict    {"instances": [...]} or {"inputs": {...}}, as in TensorFlow
                                      Serving; "signature_name" if it is not the default
    GET  /v1/models/digits            its versions
    GET  /v1/models/digits/metadata   its signatures
                                      (or with the version: /v1/models/digits/versions/1:predict)
    WS   /v1/models/digits/stream     one message per time step, {"rows": [...]}; the answer is the
                                      model's output so far. The server keeps the states, which end
                                      with the connection; after an error they are what they were.

What is wrong with a request is answered as {"error": "..."}; a stream that cannot be is closed with
1008 and the reason.
"""

import argparse
import asyncio
import contextlib
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import fastapi
import uvicorn
from fastapi.responses import JSONResponse
from google.protobuf import json_format
from served import BadRequest, Batcher, ServedModel
from starlette.exceptions import HTTPException

MOST_BYTES = 32_000_000
# Requests of more bytes are read in a thread, so that others need not wait. For small ones handing
# over takes longer than reading.
LARGE = 200_000
STREAM = ("initial_state", "step")
REFUSED = 1008  # WebSocket's code for what goes against the rules of a server
KEYS = {"instances", "inputs", "signature_name"}


def application(model):
    """The FastAPI application that serves a `ServedModel`."""
    app, batcher = fastapi.FastAPI(title=f"{model.name}, version {model.version}"), Batcher(model)
    base = f"/v1/models/{model.name}"

    def serves(method, ending=""):
        """Registers what answers at an address, with the version in it and without."""

        def register(function):
            for place in (base, f"{base}/versions/{model.version}"):
                method(place + ending)(function)
            return function

        return register

    @app.exception_handler(BadRequest)
    async def bad_request(_, error):
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(HTTPException)
    async def not_here(request, error):
        message = f"{request.method} {request.url.path}: {error.detail}; served is {base}"
        return JSONResponse({"error": message}, error.status_code, error.headers)

    @serves(app.get)
    async def status():
        version = {
            "version": str(model.version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return {"model_version_status": [version]}

    @serves(app.get, "/metadata")
    async def metadata():
        found = {n: json_format.MessageToDict(d) for n, d in model.definitions.items()}
        return {
            "model_spec": {"name": model.name, "version": str(model.version)},
            "metadata": {"signature_def": {"signature_def": found}},
        }

    @serves(app.post, ":predict")
    async def predict(request: fastapi.Request):
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                raise BadRequest(f"the request may have {MOST_BYTES} bytes at most")
        run = asyncio.to_thread if len(body) > LARGE else at_once
        signature, arrays, by_row = await run(prediction, model, body)
        found = await batcher.run(signature, arrays)
        return await run(lambda: JSONResponse((rows if by_row else columns)(found)))

    @serves(app.websocket, "/stream")
    async def stream(socket: fastapi.WebSocket):
        await socket.accept()
        if not set(STREAM) <= set(model.inputs):
            await socket.close(REFUSED, "the model was exported without streaming=True")
            return
        given = model.checked("initial_state", {"batch_size": 1})
        states = await batcher.run("initial_state", given)
        with contextlib.suppress(fastapi.WebSocketDisconnect):
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                try:
                    given = parsed(message.get("text") or message.get("bytes") or "")
                    step = {name: [value] for name, value in given.items()}
                    arrays = model.checked("step", step, kept=states)
                    found = await batcher.run("step", arrays)
                except BadRequest as error:
                    await socket.send_text(json.dumps({"error": str(error)}))
                    continue
                states = {name: found.pop(name) for name in states}
                outputs = {name: value[0].tolist() for name, value in found.items()}
                await socket.send_text(json.dumps(outputs))

    @app.websocket("/{path:path}")
    async def no_stream_here(socket: fastapi.WebSocket):
        await socket.accept()
        await socket.close(REFUSED, f"there is no stream here; served is {base}/stream")

    return app


async def at_once(function, *arguments):
    return function(*arguments)


def parsed(text):
    """The JSON object in a request."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request must be JSON: {error}") from None
    if not isinstance(given, dict):
        raise BadRequest("the request must be a JSON object")
    return given


def prediction(model, body):
    """(signature, arrays, whether the samples were given one by one) of a request."""
    given = parsed(body)
    if ("instances" in given) == ("inputs" in given):
        raise BadRequest("the request must hold either instances or inputs")
    if unknown := sorted(set(given) - KEYS):
        raise BadRequest(f"the request may hold {', '.join(sorted(KEYS))}, not {unknown[0]}")
    signature, by_row = given.get("signature_name", "serving_default"), "instances" in given
    inputs = by_name(given["instances"]) if by_row else given["inputs"]
    if not isinstance(inputs, dict):  # the name of a single one may be left out
        known = model.inputs.get(signature, ()) if isinstance(signature, str) else ()
        inputs = dict.fromkeys(known, inputs) if len(known) == 1 else inputs
    return signature, model.checked(signature, inputs), by_row


def by_name(instances):
    """From one dict of values per sample to one list per input."""
    if not isinstance(instances, list) or not instances:
        raise BadRequest("instances must be a list with at least one sample")
    if not isinstance(instances[0], dict):
        return instances
    names = instances[0].keys()
    if not all(isinstance(sample, dict) and sample.keys() == names for sample in instances):
        raise BadRequest("instances must all hold the same inputs")
    return {name: [sample[name] for sample in instances] for name in names}


def rows(found):
    """The answer by samples; of a single output its values alone, as TensorFlow Serving has it."""
    values = zip(*(value.tolist() for value in found.values()), strict=True)
    return {"predictions": [alone(dict(zip(found, row, strict=True))) for row in values]}


def columns(found):
    """The answer by outputs."""
    return {"outputs": alone({name: value.tolist() for name, value in found.items()})}


def alone(values):
    return next(iter(values.values())) if len(values) == 1 else values


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="its folder, with one folder per version in it")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8501, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    model = ServedModel(arguments.model)
    config = uvicorn.Config(
        application(model),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        backlog=4096,
        ws_max_size=1_000_000,
    )
    address = f"http://{arguments.host}:{arguments.port}"
    Server(config, f"{model.name}, version {model.version}, at {address}").run()


class Server(uvicorn.Server):
    """Says so once it listens."""

    def __init__(self, config, ready):
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets=None):
        await super().startup(sockets)
        if self.started:
            print(self.ready, flush=True)


if __name__ == "__main__":
    main()
