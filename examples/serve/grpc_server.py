"""Serves a SavedModel by TensorFlow Serving's gRPC protocol, from Python.

    python examples/serve/grpc_server.py out/served/digits --port 8500

Clients of TensorFlow Serving need no change: PredictionService.Predict and GetModelMetadata,
ModelService.GetModelStatus. Nothing is kept between calls: of a stream the client holds the states,
which it gets from the signature "initial_state" and hands to "step" and "chunk".
"""

import argparse
import asyncio
import contextlib
import math
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import tensorflow as tf
from served import BadRequest, Batcher, ServedModel
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

MOST_BYTES = 32_000_000
MOST_NUMBERS = MOST_BYTES // 4  # of one tensor: a small message may stand for a large one


class _Service:
    """What both services share."""

    def __init__(self, model):
        self.model, self.batcher = model, Batcher(model)

    async def checked(self, spec, context):
        """Ends a call for another model or version."""
        model = self.model
        if spec.name != model.name or spec.version.value not in (0, model.version):
            wanted = f"{spec.name}, version {spec.version.value or 'any'}"
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"there is no model {wanted}; served is {model.name}, version {model.version}",
            )


class Prediction(_Service, prediction_service_pb2_grpc.PredictionServiceServicer):
    async def Predict(self, request, context):
        await self.checked(request.model_spec, context)
        signature = request.model_spec.signature_name or "serving_default"
        try:
            given = {name: _array(name, tensor) for name, tensor in request.inputs.items()}
            arrays = self.model.checked(signature, given)
            found = await self.batcher.run(signature, arrays)
        except BadRequest as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        wanted = set(request.output_filter) or set(found)
        if unknown := wanted - set(found):
            message = f"output_filter must be of {', '.join(sorted(found))}, not {min(unknown)}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        response = predict_pb2.PredictResponse()
        _describe(response.model_spec, self.model, signature)
        for name in wanted:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(found[name]))
        return response

    async def GetModelMetadata(self, request, context):
        await self.checked(request.model_spec, context)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in self.model.definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _describe(response.model_spec, self.model)
        response.metadata["signature_def"].Pack(signatures)
        return response


class Status(_Service, model_service_pb2_grpc.ModelServiceServicer):
    async def GetModelStatus(self, request, context):
        await self.checked(request.model_spec, context)
        response = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        response.model_version_status.add(version=self.model.version, state=available)
        return response


async def start(model, address):
    """A server that runs; the port that it listens at."""
    sizes = [(f"grpc.max_{way}_message_length", MOST_BYTES) for way in ("send", "receive")]
    # Two servers at one port would share its clients, without a word.
    server = grpc.aio.server(options=[*sizes, ("grpc.so_reuseport", 0)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(model), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(model), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise SystemExit(f"Cannot listen at {address}: {error}") from None
    await server.start()
    return server, port


def _array(name, tensor):
    sizes = [axis.size for axis in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or min(sizes, default=0) < 0:
        raise BadRequest(f"{name} must have a shape that is known, not {sizes or 'none'}")
    if math.prod(sizes) > MOST_NUMBERS:
        raise BadRequest(f"{name} may hold {MOST_NUMBERS} numbers at most, not {math.prod(sizes)}")
    try:
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{name} is no tensor: {error}") from None


def _describe(spec, model, signature=""):
    spec.name, spec.signature_name = model.name, signature
    spec.version.value = model.version


async def _serve(model, address):
    server, _ = await start(model, address)
    print(f"{model.name}, version {model.version}, at {address}", flush=True)
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(grace=5)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="its folder, with one folder per version in it")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8500, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    model = ServedModel(arguments.model)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(model, f"{arguments.host}:{arguments.port}"))


if __name__ == "__main__":
    main()
