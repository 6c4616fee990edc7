"""The servers in examples/serve: every client its own answer, every bad request its error."""

import asyncio
import subprocess
import sys

import client
import grpc
import grpc_server
import http_server
import keras
import load_test
import make_model
import numpy as np
import pytest
import tensorflow as tf
from fastapi.testclient import TestClient
from helpers import run_python
from http_server import application
from served import LARGEST_BATCH, MOST_SAMPLES, BadRequest, Batcher, ServedModel
from tensorflow_serving.apis import prediction_service_pb2_grpc

import keras_gates as kg
from keras_gates.deployment import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a trained and exported model, with a version of it."""
    path = tmp_path_factory.mktemp("served") / "digits"
    make_model.main(["--epochs", "1", "--out", str(path / "1")])
    return path


@pytest.fixture(scope="module")
def model(folder):
    return ServedModel(folder)


@pytest.fixture
def http(model):
    return TestClient(application(model))


def whole(model, rows):
    """What the model gives for each sequence alone."""
    found = [model.run("serving_default", {"rows": one[None]})["digit"] for one in rows]
    return np.concatenate(found)


def test_both_servers_under_load(folder):
    """In processes without the package: predictions, streams, bad requests in between."""
    printed = run_python(
        f"""
        import runpy, sys
        sys.path.insert(0, {str(load_test.__file__.rpartition("/")[0])!r})
        sys.argv = ["load_test.py", "--quick", "--model", {str(folder)!r}]
        try:
            runpy.run_path({load_test.__file__!r}, run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, end.code
        """,
        without_package=True,
    )
    assert "wrong answers: 0" in printed
    assert "| gRPC, streams: 30 |" in printed
    assert int(printed.partition("by their errors: ")[2].partition(";")[0]) >= 50


def test_the_load_test_notices_a_stream_with_the_states_of_another(model):
    load = load_test.Load(model, 0, 0)

    async def crossed():
        states = {}

        def open_stream(index):
            return _Stream(model, states, index // 2)

        return await load.streams(open_stream, sessions=4, steps=3)

    asyncio.run(crossed())
    assert len(load.wrong) == 4
    load.check_refusal("no error", "rows must be", "a wrong request")
    assert "expected 'rows must be', got 'no error'" in load.wrong[-1]


class _Stream:
    """A stream whose states are kept under a name that it may share with another."""

    def __init__(self, model, states, name):
        self.model, self.states, self.name = model, states, name

    async def __aenter__(self):
        start = self.model.run("initial_state", {"batch_size": np.int32(1)})
        self.states.setdefault(self.name, start)
        return self._step

    async def __aexit__(self, *_):
        pass

    async def _step(self, row):
        await asyncio.sleep(0)
        given = {"rows": row[None], **self.states[self.name]}
        self.states[self.name] = self.model.run("step", given)
        return self.states[self.name].pop("digit")[0]


def test_requests_that_come_together_share_calls_and_get_their_own_answers(model, rng):
    lengths = [5, 5, 8, 5, 8, 3, 5, 5]
    rows = [rng.normal(size=(1 + i % 3, n, 8)).astype("float32") for i, n in enumerate(lengths)]
    rows += [rng.normal(size=(LARGEST_BATCH - 1, 5, 8)).astype("float32")]
    calls = []

    class Counting:
        def run(self, signature, arrays):
            calls.append(len(arrays["rows"]))
            return model.run(signature, arrays)

    async def all_at_once():
        batcher = Batcher(Counting())
        return await asyncio.gather(
            *(batcher.run("serving_default", {"rows": own}) for own in rows)
        )

    for found, own in zip(asyncio.run(all_at_once()), rows, strict=True):
        np.testing.assert_allclose(found["digit"][:3], whole(model, own[:3]), atol=1e-5)
        assert len(found["digit"]) == len(own)
    assert len(calls) == 4  # lengths 5 (twice: not more than a batch at once), 8, 3
    assert max(calls) <= LARGEST_BATCH


def test_a_call_that_fails_fails_its_requests_alone(model):
    class Failing:
        def run(self, signature, arrays):
            if signature == "step":
                raise RuntimeError("out of memory")
            return arrays

    async def ask():
        batcher, one = Batcher(Failing()), {"rows": np.zeros((1, 8))}
        wanted = ("step", "step", "chunk")
        return await asyncio.gather(
            *(batcher.run(name, one) for name in wanted), return_exceptions=True
        )

    first, second, third = asyncio.run(ask())
    assert str(first) == str(second) == "out of memory"
    assert third["rows"].shape == (1, 8)


def test_rest_is_that_of_tensorflow_serving(http, model, rng):
    rows = rng.normal(size=(2, 4, 8)).astype("float32")
    expected = whole(model, rows)
    for body, answer in (
        ({"instances": rows.tolist()}, "predictions"),
        ({"instances": [{"rows": one.tolist()} for one in rows]}, "predictions"),
        ({"inputs": rows.tolist()}, "outputs"),
        ({"inputs": {"rows": rows.tolist()}, "signature_name": "serving_default"}, "outputs"),
    ):
        response = http.post("/v1/models/digits:predict", json=body)
        assert response.status_code == 200, response.text
        np.testing.assert_allclose(response.json()[answer], expected, atol=1e-5)
    assert http.get("/v1/models/digits").json()["model_version_status"][0]["version"] == "1"
    metadata = http.get("/v1/models/digits/metadata").json()["metadata"]
    signatures = metadata["signature_def"]["signature_def"]
    assert set(signatures) >= {"serving_default", "initial_state", "step", "chunk"}


def test_a_socket_keeps_its_states_through_an_error(http, model, rng):
    rows = rng.normal(size=(1, 4, 8)).astype("float32")
    with http.websocket_connect("/v1/models/digits/stream") as socket:
        for row in rows[0]:
            socket.send_json({"rows": row[:-1].tolist()})
            assert "rows must be float32 of shape (any, 8)" in socket.receive_json()["error"]
            socket.send_json({"rows": row.tolist()})
            found = socket.receive_json()["digit"]
    np.testing.assert_allclose([found], whole(model, rows), atol=1e-5)


def test_a_version_may_be_named(http, rng):
    body = {"instances": rng.normal(size=(1, 4, 8)).tolist()}
    found = [http.post(f"/v1/models/digits{at}:predict", json=body) for at in ("", "/versions/1")]
    assert found[0].json() == found[1].json()
    assert "predictions" in found[0].json()
    assert http.get("/v1/models/digits/versions/1").status_code == 200
    missing = http.post("/v1/models/digits/versions/2:predict", json=body)
    assert missing.status_code == 404
    assert "served is /v1/models/digits" in missing.json()["error"]


def test_a_stream_that_cannot_be_is_closed_with_the_reason(http):
    with http.websocket_connect("/v1/models/nothing/stream") as socket:
        closed = socket.receive()
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
    assert closed["reason"] == "there is no stream here; served is /v1/models/digits/stream"


def test_tokens(tmp_path, rng):
    """A model that reads integers, of a vocabulary."""
    frames = keras.Input((None,), dtype="int32", name="words")
    embedded = keras.layers.Embedding(10, 4, mask_zero=True)(frames)
    score = keras.layers.Dense(1, name="score")(kg.GatedRNN(4, name="reader")(embedded))
    (tmp_path / "words").mkdir()
    export(keras.Model(frames, score), tmp_path / "words" / "1", streaming=True)
    model = ServedModel(tmp_path / "words")
    http = TestClient(application(model))
    words = rng.integers(1, 10, (1, 5))
    answer = http.post("/v1/models/words:predict", json={"instances": words.tolist()}).json()
    with http.websocket_connect("/v1/models/words/stream") as socket:
        for word in words[0]:
            socket.send_json({"words": 99})
            assert "= 99 is not in [0, 10)" in socket.receive_json()["error"]
            socket.send_json({"words": int(word)})
            found = socket.receive_json()["score"]
    np.testing.assert_allclose(found, answer["predictions"][0], atol=1e-6)
    for wrong, message in [
        ([[1, 99]], "the model cannot take these values: indices[0,1] = 99 is not in [0, 10)"),
        ([[0.5]], "words must be int32 of shape (any, any), and holds floating-point numbers"),
        ([["a"]], "something other than numbers"),
        ([[True]], "something other than numbers"),
        ([[2**40]], "too large"),
        ([[]], "is empty"),
    ]:
        answer = http.post("/v1/models/words:predict", json={"instances": wrong})
        assert answer.status_code == 400
        assert message in answer.json()["error"]


def test_a_small_message_may_not_stand_for_a_large_tensor():
    """TensorFlow repeats the last value until the shape is full."""
    small = tf.make_tensor_proto(np.zeros(1, "float32"))
    for sizes, message in [
        ([10_000, 20_000], "numbers at most, not 200000000"),
        ([2**30, 2**40], "numbers at most"),
        ([1, -1], "must have a shape that is known"),
    ]:
        del small.tensor_shape.dim[:]
        for size in sizes:
            small.tensor_shape.dim.add(size=size)
        with pytest.raises(BadRequest, match=f"rows .*{message}"):
            grpc_server._array("rows", small)


def test_outputs_are_chosen_by_grpc(model):
    async def ask(*names):
        server, port = await grpc_server.start(model, "127.0.0.1:0")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                states = client.arrays(
                    await stub.Predict(client.predict_request("initial_state", batch_size=1))
                )
                rows = np.zeros((1, 8), "float32")
                request = client.predict_request("step", rows=rows, **states)
                request.output_filter.extend(names)
                return set(client.arrays(await stub.Predict(request))), set(states)
        finally:
            await server.stop(None)

    assert asyncio.run(ask("digit"))[0] == {"digit"}
    found, states = asyncio.run(ask())
    assert found == {"digit", *states}
    with pytest.raises(grpc.aio.AioRpcError, match="output_filter must be of digit, .*, not toe"):
        asyncio.run(ask("toe"))


def test_a_server_is_ready_when_it_says_so_and_not_where_another_is(folder):
    with load_test.server("http_server.py", str(folder)) as port:
        command = [sys.executable, http_server.__file__, str(folder), "--port", str(port)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode
    assert second.stdout == ""
    assert "address already in use" in second.stderr


def test_addresses_that_are_not_there_are_answered_as_every_error(http):
    response = http.post("/v1/models/nothing:predict", json={})
    assert response.status_code == 404
    assert "served is /v1/models/digits" in response.json()["error"]
    response = http.get("/v1/models/digits:predict")
    assert response.status_code == 405
    assert "GET /v1/models/digits:predict" in response.json()["error"]


def test_a_request_that_the_model_cannot_take_fails_alone():
    class Vocabulary:
        def run(self, signature, arrays):
            if arrays["tokens"].max() > 9:
                raise BadRequest("no such token")
            return arrays

    async def ask():
        batcher = Batcher(Vocabulary())
        wanted = [np.array([[value]]) for value in (1, 99, 3)]
        return await asyncio.gather(
            *(batcher.run("serve", {"tokens": one}) for one in wanted), return_exceptions=True
        )

    first, second, third = asyncio.run(ask())
    assert (first["tokens"].item(), third["tokens"].item()) == (1, 3)
    assert str(second) == "no such token"


@pytest.mark.parametrize("size", [-1, 0, 1025, 2**40])
def test_numbers_of_streams_are_limited(size, model):
    with pytest.raises(BadRequest, match="batch_size"):
        model.checked("initial_state", {"batch_size": size})


def test_a_binary_message_is_answered_as_a_text(http):
    with http.websocket_connect("/v1/models/digits/stream") as socket:
        socket.send_bytes(b"\x00\xff")
        assert "must be JSON" in socket.receive_json()["error"]
        socket.send_bytes(b'{"rows": [0, 0, 0, 0, 0, 0, 0, 0]}')
        assert len(socket.receive_json()["digit"]) == 10


def test_what_is_too_large_is_refused_before_it_is_run(model):
    rows = np.zeros((MOST_SAMPLES + 1, 1, 8))
    with pytest.raises(BadRequest, match="1024 samples at most, not 1025"):
        model.checked("serving_default", {"rows": rows})
    states = model.run("initial_state", {"batch_size": np.int32(2)})
    with pytest.raises(BadRequest, match="equally many samples: .*rows \\(1, 8\\)"):
        model.checked("step", {**states, "rows": rows[:1, 0]})


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(SystemExit, match="run make_model.py first"):
        ServedModel(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(SystemExit, match="is a SavedModel itself. Give a folder with one folder"):
        ServedModel(tmp_path)


def test_the_clients_ask_both_servers(folder, capsys):
    with (
        load_test.server("http_server.py", str(folder)) as http_port,
        load_test.server("grpc_server.py", str(folder)) as grpc_port,
    ):
        arguments = ["--http", f"127.0.0.1:{http_port}", "--grpc", f"127.0.0.1:{grpc_port}"]
        asyncio.run(client.main(arguments))
    printed = [line.partition(":")[2].split() for line in capsys.readouterr().out.splitlines()]
    written, by_rest, by_grpc, _, steps_by_grpc, steps_by_socket = printed
    assert by_rest == by_grpc
    assert len(by_rest) == len(written) == 5
    assert steps_by_grpc == steps_by_socket
    assert len(steps_by_grpc) == 8
    assert steps_by_grpc[-1] == by_rest[0]
