"""Asks the servers: one request by REST, one by gRPC, and one image row by row over a stream.

    python examples/serve/client.py

REST and gRPC requests are TensorFlow Serving's, so that they go to a real one as well.
"""

import argparse
import asyncio
import json
import os
import socket
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import httpx
import numpy as np
import tensorflow as tf
import websockets
from sklearn.datasets import load_digits
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

MODEL = "digits"


def predict_rest(host, images):
    """From images to probabilities, by REST."""
    response = httpx.post(
        f"http://{host}/v1/models/{MODEL}:predict", json={"instances": images.tolist()}
    )
    if response.is_error:
        raise SystemExit(f"{response.status_code}: {response.text}")
    return np.array(response.json()["predictions"])


def predict_request(signature="serving_default", **inputs):
    """A PredictRequest."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = MODEL, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def arrays(response):
    """The outputs of a PredictResponse by name."""
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


def predict_grpc(stub, images):
    """From images to probabilities, by gRPC."""
    return arrays(stub.Predict(predict_request(rows=images)))["digit"]


def steps_grpc(stub, image):
    """The probabilities after each row, by gRPC; the states are kept here."""
    start = predict_request("initial_state", batch_size=np.int32(1))
    states = arrays(stub.Predict(start))
    for row in image:
        found = arrays(stub.Predict(predict_request("step", rows=row[None], **states)))
        yield found.pop("digit")[0]
        states = found


async def steps_websocket(host, image):
    """The probabilities after each row, over a WebSocket; the server keeps the states."""
    async with websockets.connect(f"ws://{host}/v1/models/{MODEL}/stream") as socket:
        for row in image:
            await socket.send(json.dumps({"rows": row.tolist()}))
            yield json.loads(await socket.recv())["digit"]


def wait_for(address, seconds=30):
    """Waits until a server listens, which takes it some seconds after its start."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, int(port)), 1).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"There is no server at {address}: {error}") from None
        time.sleep(0.2)


async def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--http", default="127.0.0.1:8501", help="default: %(default)s")
    parser.add_argument("--grpc", default="127.0.0.1:8500", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    for address in (arguments.http, arguments.grpc):
        wait_for(address)
    digits = load_digits()
    images, labels = (digits.images[-5:] / 16).astype("float32"), digits.target[-5:]
    print("written:  ", *labels)
    print("by REST:  ", *predict_rest(arguments.http, images).argmax(-1))
    with grpc.insecure_channel(arguments.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        print("by gRPC:  ", *predict_grpc(stub, images).argmax(-1))
        print(f"row by row, what is taken for {labels[0]} so far:")
        print("  gRPC:     ", *(np.argmax(p) for p in steps_grpc(stub, images[0])))
    streamed = [np.argmax(p) async for p in steps_websocket(arguments.http, images[0])]
    print("  WebSocket:", *streamed)


if __name__ == "__main__":
    asyncio.run(main())
