"""LiteRT files: what LiteRT's interpreter makes of them against the Keras model."""

import contextlib
import doctest
import os
import re
import sys
import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND, CASES, MASK, MGUCell, golden_files, run_python, unpacked

import keras_gates as kg
from keras_gates.deployment import NotExportableError, ParityError, export, inspect, verify
from keras_gates.deployment.litert import LiteRT
from keras_gates.deployment.noise import without_noise
from keras_gates.deployment.runners import shared
from keras_gates.deployment.signatures import signatures
from keras_gates.deployment.spec import ModelSpec
from keras_gates.deployment.streaming import Stream

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
if BACKEND != "tensorflow":
    pytest.skip("LiteRT files are written by way of TensorFlow", allow_module_level=True)
import tensorflow as tf  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")

LAYERS = keras.layers
CONVERTS_SOFTSIGN = not tf.__version__.startswith("2.18.")  # the oldest that is accepted
ARGUMENTS = {name: arguments for name, (arguments, _) in CASES.items()}


@pytest.fixture(autouse=True)
def _fewer_repetitions(monkeypatch):
    monkeypatch.setattr(verify, "REPETITIONS", 2)


class Written:
    """A model as a LiteRT file, and the interpreter that runs it."""

    def __init__(self, model, folder, **options):
        self.model, self.path = model, folder / "model.tflite"
        spec, file = ModelSpec(model), LiteRT()
        streaming = options.pop("streaming", False)
        file.check(spec, streaming=streaming, **options)
        if streaming:
            options["stream"] = Stream(spec)
        self.found = file.write(spec, self.path, **options)
        self.interpreter = interpreter.Interpreter(str(self.path))

    def run(self, signature="serving_default", **inputs):
        return self.interpreter.get_signature_runner(signature)(**inputs)

    def assert_equal(self, *batches, **tolerance):
        """The file gives what the model gives, for each batch of the input "frames"."""
        for frames in batches:
            found, expected = self.run(frames=frames), self.model(frames, training=False)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name].shape == value.shape
                np.testing.assert_allclose(
                    found[name], value, **{"rtol": 1e-5, "atol": 2e-6, **tolerance}, err_msg=name
                )


def randomized(model, rng):
    """The model with random weights, biases too."""
    model.set_weights([0.5 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def parallel(layers, rng, start=()):
    """A model with the outputs of all layers, by name, each of the same input."""
    frames = hidden = keras.Input((None, 3), name="frames")
    for layer in start:
        hidden = layer(hidden)
    outputs = {}
    for name, layer in layers.items():
        found = keras.tree.flatten(layer(hidden))
        outputs |= {f"{name}_{i}": value for i, value in enumerate(found)}
    return randomized(keras.Model(frames, outputs), rng)


def sequential(rng, *layers, time=None):
    start = keras.Input((time, 3), name="frames")
    return randomized(keras.Sequential([start, *layers], name="small"), rng)


def sequences(rng, batch, lengths=(1, 9, 40)):
    return [rng.normal(size=(batch, length, 3)).astype("float32") for length in lengths]


# ---------------------------------------------------------------------- equality


def test_every_cell_at_several_lengths(tmp_path, rng):
    layers = {
        name: kg.GatedRNN(4, return_sequences=bool(i % 2), **arguments)
        for i, (name, arguments) in enumerate(ARGUMENTS.items())
        if CONVERTS_SOFTSIGN or "softsign" not in str(arguments)
    }
    layers["own"] = kg.GatedRNN(4, cell=MGUCell, candidate_activation="penalized_tanh")
    layers["learned"] = kg.GatedRNN(3, candidate_activation=LAYERS.PReLU(), grad_clip_norm=1.0)
    layers["gru_of_keras"] = LAYERS.GRU(3, return_sequences=True)
    layers["simple_of_keras"] = LAYERS.SimpleRNN(3)
    written = Written(parallel(layers, rng), tmp_path, batch_size=2)
    written.assert_equal(*sequences(rng, 2))
    assert written.found.operators["WHILE"] == len(layers)


@pytest.mark.slow
def test_every_kind_of_padding_in_every_direction(tmp_path, rng):
    layers = {
        "backwards": kg.GatedRNN(3, go_backwards=True, return_sequences=True),
        "both": LAYERS.Bidirectional(kg.GatedRNN(3, activation_l1=0.1, return_sequences=True)),
        "sum": LAYERS.Bidirectional(LAYERS.LSTM(3), merge_mode="sum"),
        "cells": LAYERS.RNN([kg.GRUCell(3), LAYERS.LSTMCell(2)], return_sequences=True),
        "zeros": kg.GatedRNN(3, return_sequences=True, zero_output_for_mask=True),
        "per_step": LAYERS.TimeDistributed(LAYERS.Dense(2, "relu")),
        "states": kg.GatedRNN(3, cell="lstm", return_sequences=True, return_state=True),
    }
    start = [LAYERS.Masking(), LAYERS.Dropout(0.5)]
    written = Written(parallel(layers, rng, start), tmp_path, batch_size=6)
    padded, one, long = sequences(rng, 6, (9, 1, 33))
    padded[~MASK] = long[:, 20:] = one[2:4] = 0
    written.assert_equal(padded, one, long)


@pytest.mark.slow
def test_activations(tmp_path, rng):
    """All that this package adds, but one, and some of Keras'."""
    mixed = [
        ("gru", {"update": "tanh_gate", "reset": "softsign_gate"}, "penalized_tanh"),
        ("gru", {"update": "relu_gate", "reset": "hard_sigmoid_keras2"}, "min_gru_g"),
        ("lstm", {"input": "hard_silu", "output": "softplus"}, "elu"),
    ]
    layers = {
        f"layer_{i}": kg.GatedRNN(3, cell, gate_activation=gates, candidate_activation=candidate)
        for i, (cell, gates, candidate) in enumerate(mixed)
    }
    used = {"fast_gate"}.union(*[{*gates.values(), candidate} for _, gates, candidate in mixed])
    assert used >= set(kg.activations.names()) - set(dir(keras.activations))
    Written(parallel(layers, rng), tmp_path).assert_equal(*sequences(rng, 1, (1, 9)))


@pytest.mark.slow
def test_tokens_inputs_and_states_from_the_model(tmp_path, rng):
    """Two inputs, an Embedding's mask, and a layer that begins in a state that is computed."""
    words = keras.Input((None,), dtype="int32", name="words")
    speaker = keras.Input((4,), name="speaker")
    masked = kg.GatedRNN(4)(LAYERS.Embedding(7, 3, mask_zero=True)(words))
    inner = keras.Sequential([keras.Input((None,)), LAYERS.Embedding(7, 3)])
    begun = kg.GatedRNN(4)(inner(words), initial_state=[speaker])
    score = LAYERS.Dense(2, name="score")(LAYERS.Concatenate()([masked, begun]))
    model = randomized(keras.Model([words, speaker], score), rng)
    written = Written(model, tmp_path, batch_size=3)
    for tokens in ([[1, 2, 0, 0], [3, 0, 4, 5], [0, 0, 0, 0]], [[1], [2], [0]]):
        given = np.array(tokens, "int32"), rng.normal(size=(3, 4)).astype("float32")
        found = written.run(words=given[0], speaker=given[1])
        np.testing.assert_allclose(found["score"], model(list(given)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stateful_file_goes_on_where_it_was(tmp_path, rng):
    frames = keras.Input(batch_shape=(2, None, 3), name="frames")
    layer = kg.GatedRNN(4, stateful=True, name="memory")
    model = randomized(keras.Model(frames, {"out": layer(frames)}), rng)
    layer.reset_state()
    written = Written(model, tmp_path)
    assert written.found.signatures["serving_default"]["inputs"]["frames"]["shape"] == [2, None, 3]
    assert any(note.startswith("memory is stateful") for note in written.found.notes)
    first, *rest = sequences(rng, 2, (5, 2, 9))
    before = np.array(model(first)["out"])
    np.testing.assert_allclose(written.run(frames=first)["out"], before, rtol=1e-5, atol=1e-6)
    written.assert_equal(*rest, first)
    assert abs(written.run(frames=first)["out"] - before).max() > 1e-3


# ---------------------------------------------------------------------- streaming


@pytest.mark.slow
def test_interleaved_streams_equal_whole_sequences(tmp_path, rng):
    model = sequential(
        rng,
        LAYERS.Masking(),
        kg.GatedRNN(5, gate_activation="hard_sigmoid", return_sequences=True, name="low"),
        LAYERS.TimeDistributed(LAYERS.Dense(4, "relu")),
        LAYERS.LSTM(4, return_sequences=True, name="high"),
        LAYERS.Dense(2, name="score"),
    )
    written = Written(model, tmp_path, streaming=True)
    inputs = written.found.signatures["step"]["inputs"]
    assert set(inputs) == {"frames", "low_hidden", "high_hidden", "high_cell"}
    assert inputs["frames"]["shape"] == [1, 3]
    assert written.found.signatures["initial_state"]["inputs"] == {}
    streams = sequences(rng, 1, (9, 9))
    streams[1][0, 2:4] = 0
    states = [written.run("initial_state") for _ in streams]
    steps = [[], []]
    for time in range(9):
        for i, frames in enumerate(streams):
            found = written.run("step", frames=frames[:, time], **states[i])
            steps[i].append(found.pop("score"))
            states[i] = found
    for frames, found in zip(streams, steps, strict=True):
        whole = np.array(model(frames))
        np.testing.assert_allclose(np.stack(found, 1), whole, rtol=1e-5, atol=2e-6)
    # And a chunk of any size from where a stream is.
    after = written.run("chunk", frames=streams[0][:, :4], **written.run("initial_state"))
    after.pop("score")
    rest = written.run("chunk", frames=streams[0][:, 4:], **after)["score"]
    np.testing.assert_allclose(rest, np.array(model(streams[0]))[:, 4:], rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_export_with_streams_in_a_process_of_its_own(tmp_path, rng):
    model = sequential(rng, LAYERS.Masking(), kg.GatedRNN(5, cell="lstm"), LAYERS.Dense(2))
    report = export(model, tmp_path / "model", "litert", streaming=True)
    assert report.path == str(tmp_path / "model.tflite")
    assert report.difference.relative < 1e-5
    whole = [sample for sample in report.samples if sample.mode == "whole"]
    assert len({sample.length for sample in whole}) >= 3
    assert {sample.batch for sample in report.samples} == {1}
    assert {sample.mask for sample in whole} == {"none", "right", "any"}
    assert {sample.mode for sample in report.samples} == {"whole", "step", "chunk"}
    shown = inspect(report.path)
    assert (shown.signatures, shown.operators) == (report.signatures, report.operators)


# ---------------------------------------------------------------------- what is in the file


@pytest.mark.slow
def test_signature_and_operators(tmp_path, rng):
    written = Written(sequential(rng, kg.GatedRNN(4), LAYERS.Dense(2)), tmp_path, batch_size=3)
    assert written.found.signatures == {
        "serving_default": {
            "inputs": {"frames": {"shape": [3, None, 3], "dtype": "float32"}},
            "outputs": {"outputs": {"shape": [3, 2], "dtype": "float32"}},
        }
    }
    # The interpreter's own list is of the outermost graph alone.
    listed = {op["op_name"] for op in written.interpreter._get_ops_details()} - {"DELEGATE"}
    assert "WHILE" in listed <= set(written.found.operators)
    assert {"TANH", "LOGISTIC"} <= set(written.found.operators)
    assert not {"CUSTOM"} & set(written.found.operators)


@pytest.mark.slow
def test_runner_needs_neither_tensorflow_nor_keras(tmp_path, rng):
    written = Written(sequential(rng, kg.GatedRNN(4)), tmp_path)
    (frames,) = sequences(rng, 1, (7,))
    np.savez(tmp_path / "in.npz", **{"whole/0/frames": frames})
    runner = shared.__file__.replace("shared.py", "litert.py")
    run_python(
        """
        import runpy, sys
        sys.path.insert(0, sys.argv[1].rpartition("/")[0])
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        for name in ("tensorflow", "keras", "keras_gates"):
            assert sys.modules[name] is None, name
        """,
        runner,
        written.path,
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    )
    with np.load(tmp_path / "out.npz") as found:
        expected = written.model(frames)
        np.testing.assert_allclose(found["whole/0/0/outputs"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_example_in_the_docstring_runs():
    names = {"keras": keras, "numpy": np, "keras_gates": kg}
    (test,) = doctest.DocTestFinder(recurse=False).find(signatures, globs=names)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


# ---------------------------------------------------------------------- quantization


def test_int8_is_smaller_and_its_cost_is_reported(tmp_path, rng):
    model = keras.Sequential(
        [
            keras.Input((None, 24), name="frames"),
            kg.GatedRNN(64, gate_activation="hard_sigmoid", candidate_activation="relu"),
            LAYERS.Dense(3),
        ]
    )
    plain = LiteRT().write(ModelSpec(model), tmp_path / "plain.tflite")
    report = export(model, tmp_path / "small.tflite", "litert", quantize="int8")
    assert report.size < 0.45 * (tmp_path / "plain.tflite").stat().st_size
    assert not plain.notes
    assert (
        report.notes
        == ["Quantized: 2 weights consist of 8-bit integers."]
        == inspect(report.path).notes
    )
    # A weight in 8 bits is right to 1 in 256 of the largest of its matrix.
    assert 1e-5 < report.difference.relative < 0.05
    assert report.difference.tolerance is None
    before = (tmp_path / "small.tflite").read_bytes()
    with pytest.raises(ParityError, match="differ|tolerance"):
        export(model, tmp_path / "small.tflite", "litert", quantize="int8", tolerance=1e-6)
    assert (tmp_path / "small.tflite").read_bytes() == before


def test_what_integers_cost_is_found_without_padding(tmp_path, rng):
    layers = LAYERS.Masking(), kg.GatedRNN(3, return_sequences=True)
    model = sequential(rng, *layers, LAYERS.Dense(3, "softmax"), time=6)
    x = rng.normal(0, 3, (20, 6, 3)).astype("float32")
    x[:, 2:] = 0
    options = {"quantize": "full_int8", "representative_data": x, "length": 6}
    report = export(model, tmp_path / "m", "litert", sample=x, **options)
    run = interpreter.Interpreter(report.path).get_signature_runner("serving_default")
    found = np.concatenate([next(iter(run(frames=one[None]).values())) for one in x])
    expected = model.predict(x, verbose=0)
    (cost,) = report.on_data
    assert cost.mean == pytest.approx(abs(found - expected)[:, :2].mean(), rel=1e-3)
    same = found.argmax(-1) == expected.argmax(-1)
    assert cost.same_class == pytest.approx(same[:, :2].mean())


def test_what_integers_cost_is_found_on_all_of_the_data(tmp_path, rng):
    """The first sequences, which are zeros, cost less."""
    model = sequential(rng, kg.GatedRNN(3), LAYERS.Dense(3, "softmax", name="scores"), time=4)
    x = rng.normal(0, 3, (30, 4, 3)).astype("float32")
    x[:6] = 0
    options = {"quantize": "full_int8", "representative_data": x, "length": 4}
    report = export(model, tmp_path / "m", "litert", sample=x, **options)
    run = interpreter.Interpreter(report.path).get_signature_runner("serving_default")
    found = np.concatenate([run(frames=one[None])["scores"] for one in x])
    expected = model.predict(x, verbose=0)
    (cost,) = report.on_data
    apart = abs(found - expected)
    assert apart[:6].max() < 0.7 * apart.max()
    assert cost.largest == report.difference.absolute == pytest.approx(apart.max(), rel=1e-3)
    assert cost.mean == pytest.approx(apart.mean(), rel=1e-3)
    assert cost.same_class == (found.argmax(1) == expected.argmax(1)).mean()
    told = f"on 30 sequences of the data given: 'scores' differs by {cost.mean:.2g} on average"
    assert told in str(report)
    assert told in report.to_model_card()


@pytest.mark.slow
def test_int8_of_small_weights_says_that_it_changed_nothing(tmp_path, rng):
    written = Written(sequential(rng, kg.GatedRNN(4)), tmp_path, quantize="int8")
    assert written.found.notes == [
        "Nothing is quantized: no weight has the 1024 numbers from which on LiteRT does it."
    ]


# ---------------------------------------------------------------------- refusals


def test_length_and_streaming_exclude_each_other_in_integers(tmp_path, rng):
    options = {"quantize": "full_int8", "length": 4, "representative_data": np.zeros((2, 4, 3))}
    with pytest.raises(ValueError, match="Received: both, length=4 and streaming=True"):
        export(sequential(rng, kg.GatedRNN(4)), tmp_path / "m", "litert", streaming=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"quantize": "int4"},
            ValueError,
            "`quantize` must be one of 'int8', 'float16', 'full_int8', 'int16x8'. Received: ",
        ),
        (
            {"batch_size": -1},
            ValueError,
            "`batch_size` must be a positive integer. Received: batch_size=-1",
        ),
        ({"depth": 2}, TypeError, "takes no option `depth`; its options: batch_size, length, "),
        (
            {"quantize": "full_int8", "length": 4},
            ValueError,
            "`representative_data`, such as some of the training data, is needed for quantize="
            "'full_int8' and 'int16x8', and for nothing else. Received: quantize='full_int8' with",
        ),
        (
            {"quantize": "full_int8", "representative_data": np.zeros((2, 4, 3))},
            ValueError,
            "with quantize='full_int8' either `length` must be given, how many time steps the file "
            "takes, or streaming=True, for a file that takes one step at a time: LiteRT quantizes "
            "no loop over time. Received: neither",
        ),
        (
            {"quantize": "int16x8", "length": 4, "representative_data": np.zeros((2, 4, 5))},
            ValueError,
            "`representative_data` must fit the inputs of 'small', frames: (None, None, 3)",
        ),
        ({"length": 0}, ValueError, "`length` must be a positive integer. Received: length=0"),
    ],
)
def test_wrong_options(options, error, message, tmp_path, rng):
    with pytest.raises(error, match=re.escape(message)):
        export(sequential(rng, kg.GatedRNN(4)), tmp_path / "m", "litert", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_batch_size_of_a_stateful_model_is_its_own(tmp_path):
    frames = keras.Input(batch_shape=(2, None, 3))
    model = keras.Model(frames, kg.GatedRNN(4, stateful=True)(frames), name="listener")
    message = "`batch_size` must be 2, which 'listener' has fixed because it is stateful. Received"
    with pytest.raises(ValueError, match=f"{message}: batch_size=3"):
        export(model, tmp_path / "m", "litert", batch_size=3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "mixed_float16", "mixed_bfloat16"])
def test_other_precisions_are_refused(dtype, tmp_path, rng):
    model = sequential(rng, kg.GatedRNN(4, dtype=dtype, name="ear"))
    with pytest.raises(NotExportableError, match=r"'ear' computes in b?float\d\d, .* in float32"):
        export(model, tmp_path / "m", "litert")


@pytest.mark.slow
def test_operator_that_litert_has_not_is_named_with_its_layer(tmp_path, rng):
    ear = LAYERS.Bidirectional(kg.GatedRNN(3, gate_activation="fast_gate"), name="ear")
    inner, x = sequential(rng, ear), keras.Input((None, 3))
    outer = keras.Model(x, [kg.GatedRNN(3)(x), inner(x)])
    message = r"no built-in operator for tf.Sinh in 'ear' \(Bidirectional\). Take another"
    with pytest.raises(NotExportableError, match=message):
        export(outer, tmp_path / "m", "litert")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_cannot_be_streamed_is_refused(tmp_path, rng):
    model = sequential(rng, LAYERS.Bidirectional(kg.GatedRNN(3), name="ear"))
    with pytest.raises(NotExportableError, match="'ear'"):
        export(model, tmp_path / "m", "litert", streaming=True)


def test_noise_of_the_converter_is_kept_from_the_terminal(tmp_path, rng, capfd, quick):
    data = rng.normal(size=(2, 2, 3)).astype("float32")
    options = {"quantize": "full_int8", "length": 2, "representative_data": data}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export(sequential(rng, kg.GatedRNN(2)), tmp_path / "m", "litert", verbose=0, **options)
    assert capfd.readouterr().err == ""


def test_errors_of_the_converter_come_out(capfd):
    log = b"I0000 00:00:17 1 reader.cc:83] Reading\nE0000 00:00:17 1 a.cc:1] bad\n"
    with without_noise():
        os.write(2, log + b"fully_quantize: 0, inference_type: 6\nSomething else\nno end of line")
    os.write(2, b"!")
    expected = "E0000 00:00:17 1 a.cc:1] bad\nSomething else\nno end of line!"
    assert capfd.readouterr().err == expected
    with contextlib.suppress(RuntimeError), without_noise():
        os.write(2, log + b"no Sinh\n")
        raise RuntimeError("no Sinh")
    assert capfd.readouterr().err == "E0000 00:00:17 1 a.cc:1] bad\n"


def test_a_process_without_standard_error_is_left_alone(monkeypatch):
    def closed(descriptor):
        raise OSError

    monkeypatch.setattr(os, "dup", closed)
    with without_noise():
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"quantize": "float16"}, 5e-3),
        ({"length": 12}, 1e-5),
        ({"quantize": "full_int8", "length": 12}, 0.1),
        ({"quantize": "int16x8", "length": 12}, 0.02),
        ({"quantize": "full_int8", "streaming": True}, 0.1),
        ({"quantize": "int16x8", "streaming": True}, 0.05),
    ],
    ids=str,
)
def test_for_small_devices(options, limit, tmp_path, rng):
    """Of the last two kinds little more than inputs and outputs are floats."""
    layers = [kg.GatedRNN(8, return_sequences=True), kg.GatedRNN(6, "lstm", name="high")]
    model = sequential(rng, *layers, LAYERS.Dense(2, name="scores"))
    x = rng.normal(size=(40, 12, 3)).astype("float32")
    integers = options.get("quantize") in ("full_int8", "int16x8")
    if integers:
        options = {**options, "representative_data": x}
    report = export(model, tmp_path / "m", "litert", sample=x[:4], **options)
    assert report.difference.relative < limit
    if "length" in options or integers:
        assert "WHILE" not in report.operators
    streams = options.get("streaming", False)
    assert list(report.signatures) == ["step" if streams else "serving_default"]
    if integers:
        details = interpreter.Interpreter(report.path).get_tensor_details()
        floats = [tensor for tensor in details if tensor["dtype"] == np.float32]
        assert len(floats) < 0.2 * len(details)


@pytest.mark.slow
def test_what_cannot_be_integers_is_refused(tmp_path, rng):
    """Other loops end the process of TensorFlow's converter."""
    x = rng.normal(size=(4, 5, 3)).astype("float32")
    options = {"quantize": "int16x8", "length": 5, "representative_data": x}
    model = sequential(rng, kg.GatedRNN(4, candidate_activation="softsign"))
    with pytest.raises(NotExportableError, match="cannot compute 'small' with quantize='int16x8'"):
        export(model, tmp_path / "m", "litert", **options)

    class Loop(LAYERS.Layer):
        def call(self, x):
            return tf.while_loop(
                lambda i, _: i < tf.shape(x)[1], lambda i, v: (i + 1, v * 2), (0, x)
            )[1]

    with pytest.raises(NotExportableError, match="'small' has a loop that is not a recurrent"):
        export(
            sequential(rng, kg.GatedRNN(4, return_sequences=True), Loop()),
            tmp_path / "m",
            "litert",
            **options,
        )
    learned = kg.GatedRNN(4, initial_state="learned")
    options = {**options, "length": None, "streaming": True}
    with pytest.raises(NotExportableError, match="streams begin with a learned"):
        export(sequential(rng, learned), tmp_path / "m", "litert", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dtype", "layer", "message"),
    [
        ("int32", LAYERS.Embedding(9, 3), "'chars' is read by an Embedding, and with quantize='in"),
        ("float32", LAYERS.Embedding(9, 3), "'chars' is read by an Embedding, and with quantize="),
        ("int32", LAYERS.CategoryEncoding(9), "'chars' is of dtype int32, .* Take quantize='full_"),
    ],
)
def test_integers_as_inputs_of_int16x8_are_refused_before_all(dtype, layer, message, tmp_path):
    chars = keras.Input((4,), dtype=dtype, name="chars")
    model = keras.Model(chars, LAYERS.Dense(2)(layer(chars)))
    options = {"quantize": "int16x8", "length": 4, "representative_data": np.ones((2, 4), "int32")}
    with pytest.raises(NotExportableError, match=f"the input {message}") as error:
        export(model, tmp_path / "m", "litert", **options)
    assert error.value.__cause__ is None


def test_missing_package_is_named_with_the_command(tmp_path, rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ImportError, match=r'pip install "keras_gates\[litert\]"'):
        export(sequential(rng, kg.GatedRNN(3)), tmp_path / "m", "litert")


@pytest.mark.parametrize("path", golden_files("litert"), ids=lambda path: path.stem)
def test_old_files_run(path, tmp_path):
    frames, scores = unpacked(path, tmp_path)
    loaded = interpreter.Interpreter(str(tmp_path / "model.tflite"))
    found = loaded.get_signature_runner("serving_default")(frames=frames)["scores"]
    np.testing.assert_allclose(found, scores, atol=1e-5)
    states = loaded.get_signature_runner("initial_state")()
    for step in range(frames.shape[1]):
        outputs = loaded.get_signature_runner("step")(frames=frames[:, step], **states)
        states = {name: outputs[name] for name in states}
    np.testing.assert_allclose(outputs["scores"], scores, atol=1e-5)
    assert "step" in inspect(tmp_path / "model.tflite").signatures
