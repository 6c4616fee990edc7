"""`keras_gates.export`: a written file does what its model does, without this package."""

import contextlib
import doctest
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import golden_files, run_python, unpacked

import keras_gates as kg
from keras_gates import export
from keras_gates.export import core, saved_model, verify
from keras_gates.export.inputs import Inputs
from keras_gates.export.loops import plain_loops
from keras_gates.export.names import output_names, unique
from keras_gates.export.place import aside
from keras_gates.export.samples import Sample, Samples
from keras_gates.export.streaming import Stream

# One process for many runs: each line names a runner and its arguments.
WORKER = """
    import json, runpy, sys, traceback
    sys.path.insert(0, sys.argv[1])
    for line in sys.stdin:
        sys.argv = json.loads(line)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except Exception:
            print(json.dumps(traceback.format_exc()), flush=True)
        else:
            print("null", flush=True)
"""


@pytest.fixture(scope="module")
def worker():
    code = "import sys\nsys.modules['keras_gates'] = None\n" + "\n".join(
        line[4:] for line in WORKER.splitlines()
    )
    command = [sys.executable, "-c", code, str(verify.RUNNERS)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def quick(worker, monkeypatch):
    """Has runners run in one process that lasts, which is as far from here as a new one."""

    def run(command, **_):
        print(json.dumps(command[1:]), file=worker.stdin, flush=True)
        error = json.loads(worker.stdout.readline())
        return types.SimpleNamespace(returncode=int(error is not None), stderr=error)

    monkeypatch.setattr(verify, "subprocess", types.SimpleNamespace(run=run))
    monkeypatch.setattr(verify, "REPETITIONS", 2)


@keras.saving.register_keras_serializable(package="tests_deploy")
class MGUCell(kg.GatedCell):
    """f = σ(x W_f + b_f + h U_f); n = φ(x W_n + b_n + (f * h) U_n); h' = (1 - f) h + f n"""

    blocks = ("forget", "candidate")
    projected_blocks = ("forget",)

    def update(self, x, u, states):
        (h,) = states
        f = self.gate("forget", x.forget + u.forget)
        n = self.candidate(x.candidate + self.recurrent("candidate", f * h))
        return ((1 - f) * h + f * n,)


@keras.saving.register_keras_serializable(package="tests_deploy")
class DoublingCell(kg.GRUCell):
    """A cell with a step of its own, which no loop but Keras' can run."""

    def call(self, inputs, states, training=False):
        return super().call(2 * inputs, states, training=training)


CLIP = {"grad_clip_norm": 1.0, "activation_l1": 1e-3}
CELLS = {
    "gru": {"cell": "gru", **CLIP},
    "gru_reset_before": {"cell": "gru", "reset_after": False, "candidate_l1": 1e-3},
    "gru_per_gate": {
        "gate_activation": {"update": "hard_sigmoid", "reset": "softsign_gate"},
        "candidate_activation": "relu",
    },
    "lstm": {
        "cell": "lstm",
        "gate_activation": {"forget": "hard_sigmoid"},
        "candidate_activation": "softsign",
        "output_activation": "tanh",
        "grad_clip_value": 1.0,
        "grad_clip_at": "preactivation",
    },
    "simple": {"cell": "simple", **CLIP},
    "own": {"cell": MGUCell, **CLIP},
    "own_step": {"cell": DoublingCell, **CLIP},
}


def random_weights(model):
    """Weights that leave nothing at zero, biases and normalizations too."""
    rng = np.random.default_rng(3)
    model.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def cells_model():
    """Every cell; every other one with the outputs of all steps."""
    frames = keras.Input((None, 3), name="frames")
    return random_weights(
        keras.Model(
            frames,
            {
                name: kg.GatedRNN(4, return_sequences=bool(i % 2), **arguments)(frames)
                for i, (name, arguments) in enumerate(CELLS.items())
            },
        )
    )


def masked_model():
    """A stack of what makes, keeps or uses a mask; what it puts out at masked steps is seen."""
    frames = keras.Input((None, 3))
    first = keras.layers.Masking(-1.0)(frames)
    first = kg.GatedRNN(5, return_sequences=True, name="first", **CLIP)(first)
    hidden = keras.layers.Dropout(0.5)(keras.layers.LayerNormalization()(first))
    hidden = keras.layers.GRU(4, return_sequences=True)(hidden)
    hidden = keras.layers.Dense(4, "relu")(hidden)
    cells = [kg.GRUCell(3), keras.layers.LSTMCell(4)]
    stack = keras.layers.RNN(cells, return_sequences=True, zero_output_for_mask=True, name="stack")
    stacked = stack(hidden)
    last = kg.GatedRNN(4, cell="lstm")(stacked)
    return random_weights(
        keras.Model(frames, [keras.layers.Dense(2, name="scores")(last), first, stacked])
    )


def whole_model():
    """What has to see the end of a sequence, two inputs, two outputs in a list, fixed features."""
    words = keras.Input((None,), dtype="int32", name="words")
    speaker = keras.Input((2,))
    hidden = keras.layers.Embedding(7, 4, mask_zero=True)(words)
    both = keras.layers.Bidirectional(kg.GatedRNN(3, return_sequences=True, **CLIP))(hidden)
    back = kg.GatedRNN(3, cell="simple", go_backwards=True, zero_output_for_mask=True)(both)
    last = keras.layers.Bidirectional(keras.layers.GRU(2), merge_mode="sum")(both)
    joined = keras.layers.Concatenate()([back, last, speaker])
    return random_weights(
        keras.Model([words, speaker], [keras.layers.Dense(2, name="Scores.1")(joined), 2.0 * last])
    )


def stateful_model():
    frames = keras.Input(batch_shape=(2, None, 3), name="frames")
    layer = kg.GatedRNN(3, stateful=True, name="memory", **CLIP)
    return random_weights(keras.Model(frames, layer(frames)))


def small_model(*layers, name="small"):
    return random_weights(
        keras.Sequential([keras.Input((None, 3), name="frames"), *layers], name=name)
    )


@keras.saving.register_keras_serializable(package="tests_deploy")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer = kg.GatedRNN(4, return_sequences=True)
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return {"scores": self.head(self.layer(x))}


def subclassed_model():
    model = Subclassed()
    model(np.zeros((1, 5, 3)))
    return model


def bfloat_model():
    return small_model(kg.GatedRNN(4, dtype="mixed_bfloat16"))


MODELS = {
    "cells": (cells_model, True),
    "masked": (masked_model, True),
    "whole": (whole_model, False),
    "stateful": (stateful_model, True),
    "subclassed": (subclassed_model, False),
    "bfloat16": (bfloat_model, True),
}


@pytest.fixture(scope="module")
def exported():
    return {}


@pytest.fixture
def artifact(request, exported, quick, tmp_path_factory):
    """The model of that name, its file and its report; exported once."""
    name = request.param
    if name not in exported:
        make, streaming = MODELS[name]
        model, path = make(), tmp_path_factory.mktemp("exported") / name
        exported[name] = model, path, export.export(model, path, streaming=streaming)
    return exported[name]


def of(*names):
    return pytest.mark.parametrize("artifact", names, indirect=True)


# ------------------------------------------------------------------ what is written


@of(*MODELS)
def test_export_verifies_and_reports(artifact):
    """That the file agrees with the model is what `export` itself found, or it had raised."""
    model, path, report = artifact
    assert report.path == str(path)
    assert report.format == "saved_model"
    assert report.size == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    limit = 5e-2 if model.layers[-1].compute_dtype == "bfloat16" else 1e-5
    assert 0 <= report.difference.relative <= report.difference.tolerance == limit
    lengths = {sample.length for sample in report.samples if sample.mode == "whole"}
    assert {1, 7, 230} <= lengths
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert str(path) in str(report)
    assert {latency.signature for latency in report.latency} <= {"serving_default", "step"}
    assert all(latency.file > 0 for latency in report.latency)


@of("cells", "masked", "whole", "stateful")
def test_a_file_consists_of_plain_operators(artifact):
    _, path, report = artifact
    assert report.operators["MatMul"] > 0
    assert not [name for name in report.operators if "Xla" in name or "PyFunc" in name]
    for function in tf.saved_model.load(path).signatures.values():
        graph = function.graph.as_graph_def()
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        assert not [node.name for node in nodes if "_gradient_op_type" in node.attr]


@of("masked")
def test_samples_hold_every_kind_of_padding(artifact):
    _, _, report = artifact
    whole = {sample.mask for sample in report.samples if sample.mode == "whole"}
    assert whole == {"none", "right", "any"}
    assert {"step", "chunk"} < {sample.mode for sample in report.samples}
    assert {sample.mask for sample in report.samples if sample.mode == "step"} == {"none", "any"}


@of("whole")
def test_names_are_the_users_or_plain(artifact):
    _, _, report = artifact
    (signature,) = report.signatures.values()
    assert signature["inputs"] == {
        "inputs": {"shape": [None, 2], "dtype": "float32"},
        "words": {"shape": [None, None], "dtype": "int32"},
    }
    assert list(signature["outputs"]) == ["outputs", "scores_1"]


@of("masked")
def test_signatures_of_a_stream(artifact):
    _, _, report = artifact
    assert list(report.signatures) == ["serving_default", "chunk", "initial_state", "step"]
    states = {
        "first_hidden": 5,
        "gru_hidden": 4,
        "stack_0_hidden": 3,
        "stack_1_hidden": 4,
        "stack_1_cell": 4,
        "gated_rnn_hidden": 4,
        "gated_rnn_cell": 4,
    }
    states = {name: {"shape": [None, n], "dtype": "float32"} for name, n in states.items()}
    step, chunk = report.signatures["step"], report.signatures["chunk"]
    assert step["inputs"] == {**states, "inputs": {"shape": [None, 3], "dtype": "float32"}}
    assert chunk["inputs"] == {**states, "inputs": {"shape": [None, None, 3], "dtype": "float32"}}
    for signature, shape in ((step, [None]), (chunk, [None, None])):
        assert signature["outputs"] == {
            **states,
            "scores": {"shape": [None, 2], "dtype": "float32"},
            "first": {"shape": [*shape, 5], "dtype": "float32"},
            "stack": {"shape": [*shape, 4], "dtype": "float32"},
        }
    assert report.signatures["initial_state"]["outputs"] == states


@of("stateful")
def test_a_stateful_model_keeps_its_states_and_its_batch_size(artifact):
    model, _, report = artifact
    assert report.signatures["serving_default"]["inputs"]["frames"]["shape"] == [2, None, 3]
    assert report.signatures["step"]["inputs"]["frames"]["shape"] == [None, 3]
    assert {sample.batch for sample in report.samples if sample.mode == "whole"} == {2}
    assert not np.any(model.layers[1].states[0])
    assert report.notes == [
        "memory is stateful: the file begins with the states that the model has now, and keeps "
        "them from one call of serving_default to the next. A stream begins with zeros all the "
        "same: see initial_state."
    ]


def test_a_report_begins_with_the_operators_that_run_over_time():
    operators = {"Cast": 9, "Add": 8, **{f"Op{i}": 7 for i in range(8)}, "LSTM": 2, "Loop": 1}
    report = export.ExportReport("model.onnx", "onnx", 10, {}, operators, [])
    assert "operators: LSTM 2, Loop 1, Cast 9, Add 8, Op0 7, Op1 7, Op2 7, Op3 7 and 4 more" in (
        str(report)
    )


@of("cells")
def test_inspect_tells_what_is_in_a_file(artifact):
    _, path, report = artifact
    found = export.inspect(path)
    assert (found.signatures, found.operators, found.size, found.format) == (
        report.signatures,
        report.operators,
        report.size,
        "saved_model",
    )
    assert found.difference is None
    assert "serving_default(frames: float32 (any, any, 3))" in str(found)


def test_padding_is_what_the_model_masks():
    words = Samples(Inputs(whole_model()), None, {"serving_default": {"inputs": WORDS}}, True)
    frames = keras.Sequential([keras.Input((None, 2)), keras.layers.Masking(-1.0)])
    frames = Samples(Inputs(frames), None, {"serving_default": {"inputs": FRAMES}}, True)
    for samples, blank in ((words, 0), (frames, -1.0)):
        right, anywhere = (s for s in samples.whole() if s.mask != "none" and s.length == 12)
        valid = valid_steps(samples.values(right)[0], blank)
        np.testing.assert_array_equal(valid.sum(1)[[0, -1]], [12, 1])
        np.testing.assert_array_equal(valid, np.sort(valid, 1)[:, ::-1])
        valid = valid_steps(samples.values(anywhere)[0], blank)
        assert valid[0].all()
        np.testing.assert_array_equal(valid[1], np.arange(12) > 0)  # at the start
        np.testing.assert_array_equal(valid[2, :4], [True, False, True, True])  # in between
        assert not valid[3].any()


WORDS = {
    "words": {"shape": [None, None], "dtype": "int32"},
    "inputs": {"shape": [None, 2], "dtype": "float32"},
}
FRAMES = {"inputs": {"shape": [None, None, 2], "dtype": "float32"}}


def valid_steps(values, blank):
    return (values.reshape(*values.shape[:2], -1) != blank).any(-1)


def test_names_are_the_same_at_every_export_of_a_process():
    def all_names():
        model = masked_model()
        stream = Stream(model)
        return Inputs(model).names, output_names(model), [state.name for state in stream.states]

    assert all_names() == all_names()


def test_names_are_made_unique_in_allowed_characters():
    assert unique(["Frames", "frames", "a b", "7", "a_b"]) == [
        "frames",
        "frames_1",
        "a_b",
        "x7",
        "a_b_1",
    ]


# ------------------------------------------------------------------ streams


@of("cells", "masked", "stateful")
def test_interleaved_streams_do_not_mix(artifact, rng):
    """Six sessions, each at its own pace, by step and by chunk, equal their whole sequences."""
    model, path, _ = artifact
    serve = tf.saved_model.load(path).signatures
    (name,) = Inputs(model).names
    output = output_names(model)[0]
    sequences = rng.normal(size=(6, 11, 3)).astype("float32")
    states = [serve["initial_state"](batch_size=tf.constant(1)) for _ in sequences]
    done, last = [0] * 6, [None] * 6
    while min(done) < 11:
        i = rng.integers(6)
        if done[i] == 11:
            continue
        size = 0 if i % 2 else int(min(rng.integers(1, 4), 11 - done[i]))
        at = slice(done[i], done[i] + size) if size else done[i]
        outputs = serve["chunk" if size else "step"](
            **{name: tf.constant(sequences[i : i + 1, at])}, **states[i]
        )
        last[i] = outputs.pop(output).numpy()
        states[i] = (
            outputs if set(outputs) == set(states[i]) else {key: outputs[key] for key in states[i]}
        )
        done[i] += size or 1
    expected = []
    for pair in np.split(sequences, 3):  # the stateful model takes two
        for layer in model.layers:
            if getattr(layer, "stateful", False):
                layer.reset_state()
        found = model.predict_on_batch(pair)
        found = dict(zip(output_names(model, found), keras.tree.flatten(found), strict=True))
        expected.append(found[output])
    np.testing.assert_allclose(np.concatenate(last), np.concatenate(expected), atol=1e-5)


def test_a_stream_with_an_input_without_time(quick, tmp_path):
    frames, speaker = keras.Input((None, 3), name="frames"), keras.Input((2,), name="speaker")
    wide = keras.layers.Dense(4)(speaker)[:, None]
    inner = [keras.Input((None, 4)), keras.layers.LSTM(4, return_sequences=True)]
    hidden = keras.Sequential(inner, name="inner")(keras.layers.Dense(4)(frames) + wide)
    hidden = keras.layers.SimpleRNN(3, return_sequences=True)(2.0 * hidden)
    decoded = keras.layers.RepeatVector(5)(kg.GatedRNN(2)(hidden))
    decoded = kg.GatedRNN(2, return_sequences=True, name="decoder")(decoded)
    model = random_weights(keras.Model([frames, speaker], [hidden, decoded]))
    report = export.export(model, tmp_path / "model", streaming=True)
    step = report.signatures["step"]
    assert step["inputs"]["speaker"]["shape"] == [None, 2]
    names = {"frames", "speaker", "lstm_hidden", "lstm_cell", "simple_rnn_hidden"}
    assert set(step["inputs"]) == {*names, "gated_rnn_hidden"}  # none of the decoder
    # As if the sequence ended at each step.
    assert step["outputs"]["decoder"]["shape"] == [None, 5, 2]


def test_a_stack_of_cells_repeats_its_output_at_masked_steps(rng):
    cells = [kg.GRUCell(3), keras.layers.LSTMCell(4)]
    rnn = keras.layers.RNN(cells, return_sequences=True)
    model = small_model(keras.layers.Masking(), rnn)
    x = rng.normal(size=(2, 6, 3)).astype("float32")
    x[0, 2:5] = 0
    stream = Stream(model)
    first, states = stream.chunk([x[:, :3]], stream.initial_state(2))
    last, _ = stream.chunk([x[:, 3:]], states)
    found = np.concatenate([first["outputs"], last["outputs"]], axis=1)
    np.testing.assert_allclose(found, model(x), atol=1e-6)


def test_names_of_states_differ_from_those_of_inputs_and_outputs():
    frames = keras.Input((None, 3), name="ear_hidden")
    heard = kg.GatedRNN(2, cell="lstm", name="ear")(frames)
    stream = Stream(keras.Model(frames, keras.layers.Dense(1, name="ear_cell")(heard)))
    assert [state.name for state in stream.states] == ["ear_hidden_1", "ear_cell_1"]


@pytest.mark.parametrize("mode", ["step", "chunk"])
@pytest.mark.parametrize("return_sequences", [True, False])
def test_a_stream_that_differs_is_caught(mode, return_sequences, quick, tmp_path, monkeypatch):
    right = getattr(Stream, mode)

    def wrong(self, values, states):
        outputs, states = right(self, values, states)
        # A step is a chunk as well, of one.
        factor = 1 if mode == "chunk" and values[0].shape[1] == 1 else 1.01
        return {name: factor * value for name, value in outputs.items()}, states

    monkeypatch.setattr(Stream, mode, wrong)
    model = small_model(kg.GatedRNN(3, return_sequences=return_sequences))
    with pytest.raises(export.ParityError, match="step by step" if mode == "step" else "in chunks"):
        export.export(model, tmp_path / "model", streaming=True)
    assert not list(tmp_path.iterdir())


def attention(x):
    return keras.layers.MultiHeadAttention(2, 2, name="attention")(x, x)


def with_initial_state(x):
    state = keras.layers.Dense(4)(kg.GatedRNN(4)(x))
    return kg.GatedRNN(4, name="decoder")(x, initial_state=[state])


def with_the_end(x):
    last = keras.layers.RepeatVector(1)(kg.GatedRNN(3)(x))
    return keras.layers.Add(name="sum")([x, last])


NOT_STREAMED = {
    "bidirectional": (
        lambda x: keras.layers.Bidirectional(kg.GatedRNN(4), name="both")(x),
        "'both' (Bidirectional) reads the sequence from its end as well",
    ),
    "backwards": (
        lambda x: kg.GatedRNN(4, go_backwards=True, name="back")(x),
        "'back' (GatedRNN) has go_backwards=True",
    ),
    "convolution": (
        lambda x: kg.GatedRNN(4)(keras.layers.Conv1D(4, 3, padding="causal", name="conv")(x)),
        "'conv' (Conv1D) mixes time steps",
    ),
    "pooling": (
        lambda x: keras.layers.GlobalAveragePooling1D(name="pool")(
            kg.GatedRNN(4, return_sequences=True)(x)
        ),
        "'pool' (GlobalAveragePooling1D) mixes time steps",
    ),
    "attention": (
        lambda x: attention(kg.GatedRNN(4, return_sequences=True)(x)),
        "'attention' (MultiHeadAttention) mixes time steps",
    ),
    "initial state": (with_initial_state, "'decoder' (GatedRNN) begins in a state that the model"),
    "the end": (with_the_end, "'sum' (Add) gives every time step something of the end"),
    "no recurrent layer": (
        lambda x: keras.layers.Dense(2)(x),
        "'model' has no recurrent layer along the time axis",
    ),
}


@pytest.mark.parametrize("name", NOT_STREAMED)
def test_what_cannot_stream_is_refused_with_the_layer(name, tmp_path):
    make, message = NOT_STREAMED[name]
    frames = keras.Input((None, 3))
    model = keras.Model(frames, make(frames), name="model")
    with pytest.raises(export.NotExportable) as error:
        export.export(model, tmp_path / "model", streaming=True)
    assert str(error.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_other_models_that_cannot_stream(tmp_path):
    with pytest.raises(export.NotExportable, match="is a subclassed model, whose layers cannot"):
        export.export(subclassed_model(), tmp_path / "model", streaming=True)
    flat = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="flat")
    with pytest.raises(export.NotExportable, match="'flat' has no input with a time axis"):
        export.export(flat, tmp_path / "model", streaming=True)

    class Cell(keras.layers.Layer):
        state_size = output_size = 3

        def call(self, inputs, states):
            return 2 * inputs, [inputs + states[0]]

    cell = keras.layers.RNN(Cell(), name="rnn")
    masked = small_model(keras.layers.Masking(), cell)
    with pytest.raises(export.NotExportable, match=r"'rnn' \(RNN\) has a cell of your own"):
        export.export(masked, tmp_path / "model", streaming=True)
    assert [state.name for state in Stream(small_model(cell)).states] == ["rnn_state_0"]


# ------------------------------------------------------------------ how others run it


@of("masked")
def test_tfsm_layer_loads_it(artifact, rng):
    model, path, _ = artifact
    x = rng.normal(size=(2, 9, 3)).astype("float32")
    expected = model.predict_on_batch(x)[0]
    found = keras.layers.TFSMLayer(path, call_endpoint="serve")(x)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    found = keras.layers.TFSMLayer(path, call_endpoint="serving_default")(x)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)


@of("whole")
def test_serve_takes_the_structure_of_the_model(artifact, rng):
    model, path, _ = artifact
    words, speaker = rng.integers(0, 7, (2, 6)).astype("int32"), np.ones((2, 2), "float32")
    found = keras.layers.TFSMLayer(path)([words, speaker])
    for given, expected in zip(found, model.predict_on_batch([words, speaker]), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-5)


@of("stateful")
def test_saved_model_cli_runs_it(artifact, tmp_path, rng):
    model, path, _ = artifact
    x = rng.normal(size=(2, 9, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    command = ["run", "--dir", path, "--tag_set", "serve", "--signature_def", "serving_default"]
    command += ["--inputs", f"frames={tmp_path / 'x.npy'}", "--outdir", tmp_path]
    run_python(
        "import sys; from tensorflow.python.tools.saved_model_cli import main; sys.exit(main())",
        *command,
        without_package=True,
    )
    model.layers[1].reset_state()
    np.testing.assert_allclose(
        np.load(tmp_path / "memory.npy"), model.predict_on_batch(x), atol=1e-5
    )


@pytest.mark.parametrize("path", golden_files("saved_model"), ids=lambda path: path.stem)
def test_old_files_run(path, tmp_path):
    frames, scores = unpacked(path, tmp_path)
    serve = tf.saved_model.load(tmp_path / "model").signatures
    found = serve["serving_default"](frames=tf.constant(frames))["scores"]
    np.testing.assert_allclose(found, scores, atol=1e-5)
    states = serve["initial_state"](batch_size=tf.constant(len(frames)))
    for step in range(frames.shape[1]):
        outputs = serve["step"](frames=tf.constant(frames[:, step]), **states)
        states = {name: outputs[name] for name in states}
    np.testing.assert_allclose(outputs["scores"], scores, atol=1e-5)
    assert "step" in export.inspect(tmp_path / "model").signatures


# ------------------------------------------------------------------ when it fails


def test_a_process_of_its_own_runs_the_file(tmp_path):
    """As users have it, without the worker of these tests."""
    model = small_model(kg.GatedRNN(3))
    assert export.export(model, tmp_path / "model").difference.relative < 1e-5


def test_a_runner_cannot_import_the_package(tmp_path, monkeypatch):
    shutil.copy(verify.RUNNERS / "shared.py", tmp_path)
    (tmp_path / "probe.py").write_text(
        "import importlib, shared, numpy\n"
        "def blocked(name):\n"
        "    try:\n"
        "        return numpy.array(not importlib.import_module(name))\n"
        "    except ImportError:\n"
        "        return numpy.array(True)\n"
        "def load(path):\n"
        "    names = ('keras_gates', 'json', 'x')\n"
        "    return lambda signature, inputs: {name: blocked(name) for name in names}\n"
        "shared.run(load, without=['x'])\n"
    )
    (tmp_path / "x.py").write_text("")
    monkeypatch.setattr(verify, "RUNNERS", tmp_path)
    found = verify.run("probe", tmp_path, {"whole/0": {"frames": np.zeros((1, 2))}})
    names = ("keras_gates", "json", "x")
    assert [bool(found[f"whole/0/0/{name}"]) for name in names] == [True, False, True]
    assert found["whole/0/seconds"].shape == (1,)


def test_a_file_that_differs_is_not_left_and_an_older_one_is_kept(quick, tmp_path, monkeypatch):
    path = tmp_path / "model"
    model = small_model(kg.GatedRNN(3))
    export.export(model, path)
    before = contents(tmp_path)
    write = saved_model.write

    def wrong(model, beside):
        right = model.get_weights()
        model.set_weights([1.01 * w for w in right])
        try:
            return write(model, beside)
        finally:
            model.set_weights(right)

    monkeypatch.setattr(saved_model, "write", wrong)
    with pytest.raises(
        export.ParityError, match="'small' as saved_model: the file differs from its"
    ) as error:
        export.export(model, path)
    for part in (
        "tolerance 1e-05",
        "its output 'outputs'",
        "batch ",
        f"Nothing was written to {path}",
    ):
        assert part in str(error.value)
    assert contents(tmp_path) == before
    with pytest.raises(export.ParityError):
        export.export(model, tmp_path / "other")
    assert contents(tmp_path) == before


def test_a_newer_file_takes_the_place_of_an_older_one(quick, tmp_path):
    path = tmp_path / "model"
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text("old")
    (path / "variables" / "old").write_text("old")
    model = small_model(kg.GatedRNN(3))
    report = export.export(model, str(path), sample=np.ones((2, 5, 3)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert not (path / "variables" / "old").exists()
    assert 5 in {sample.length for sample in report.samples}


@pytest.mark.parametrize("when", ["writing", "running"])
def test_a_failure_leaves_nothing(when, quick, tmp_path, monkeypatch):
    model = small_model(kg.GatedRNN(3))
    write = saved_model.write

    def fails(model, beside):
        written = write(model, beside)
        if when == "writing":
            raise OSError("no space left")
        (beside / "saved_model.pb").write_bytes(b"cut off")
        return written

    monkeypatch.setattr(saved_model, "write", fails)
    error = {"writing": OSError, "running": export.ParityError}[when]
    message = {"writing": "no space", "running": "does not run in a process without keras_gates"}
    with pytest.raises(error, match=message[when]):
        export.export(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    assert "inner_loop" not in vars(model.layers[0])


def test_plain_loops_end_with_their_context():
    model = small_model(keras.layers.Bidirectional(kg.GatedRNN(3)))
    both = model.layers[0]
    with contextlib.suppress(ZeroDivisionError), plain_loops(model):
        assert "inner_loop" in vars(both.forward_layer)
        assert "inner_loop" in vars(both.backward_layer)
        raise ZeroDivisionError
    assert "inner_loop" not in {*vars(both.forward_layer), *vars(both.backward_layer)}


def test_time_distributed_layers_are_compared_with_what_they_should_do():
    """Keras' own graph of one is wrong where neither the batch size nor the length is fixed."""
    model = small_model(keras.layers.TimeDistributed(keras.layers.Dense(2, "relu")))
    samples = Samples(Inputs(model), None, {"serving_default": {"inputs": ONE_INPUT}}, True)
    ((_, _, expected),) = verify._expected(samples.whole()[1], samples, None)
    assert expected.shape == (17, 100, 2)


ONE_INPUT = {"frames": {"shape": [None, None, 3], "dtype": "float32"}}


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_files_appear_together_or_not_at_all(tmp_path):
    target = tmp_path / "model.xml"
    for text in ("first", "second"):
        with aside(target) as path:
            path.write_text(text)
            path.with_suffix(".bin").write_text(text)
    assert contents(tmp_path) == {"model.xml": b"second", "model.bin": b"second"}

    def interrupted():
        with aside(target) as path:
            path.write_text("third")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"model.xml": b"second", "model.bin": b"second"}


def killed(target, kind, at):
    """Writes in a process that is killed instead of making its move number `at`, from 0."""
    process = os.fork()
    if process:
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        return
    moves = 0

    def counting(move):
        def moving(source, to):
            nonlocal moves
            if moves == at:
                os.kill(os.getpid(), signal.SIGKILL)
            moves += 1
            move(source, to)

        return moving

    os.replace, os.link = counting(os.replace), counting(os.link)
    try:
        with aside(target) as path:
            if kind == "folder":
                path.mkdir()
                path = path / "inside"
            path.write_text("new")
    finally:
        os._exit(1)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_while_files_are_moved(kind, tmp_path):
    """At every move: the older file stays there, and nothing is left after the next export."""
    target = tmp_path / "model"
    inside = target / "inside" if kind == "folder" else target
    if kind == "folder":
        target.mkdir()
    inside.write_text("old")
    for at in range(3 if kind == "folder" else 2):  # a link that fails counts as well
        killed(target, kind, at)
        assert len(list(tmp_path.glob(".model.*"))) == 1
        if kind == "file":
            assert target.read_text() == "old"
        with pytest.raises(KeyboardInterrupt), aside(target):  # clears up, and writes nothing
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == [target]
        assert inside.read_text() == "old"


def test_what_others_are_writing_is_left_alone(tmp_path):
    with aside(tmp_path / "model") as first, aside(tmp_path / "model") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert contents(tmp_path) == {"model": b"first"}


def test_files_go_back_if_one_cannot_be_moved(tmp_path, monkeypatch):
    target = tmp_path / "model.xml"
    target.write_text("old")
    (tmp_path / "model.bin").write_text("old")
    replace = os.replace

    def fails(source, to):
        if str(to) == str(target) and pathlib.Path(source).read_text() == "new":
            raise OSError("busy")
        replace(source, to)

    monkeypatch.setattr(os, "replace", fails)

    def write():
        with aside(target) as path:
            path.write_text("new")
            path.with_suffix(".bin").write_text("new")

    with pytest.raises(OSError, match="busy"):
        write()
    assert contents(tmp_path) == {"model.xml": b"old", "model.bin": b"old"}


ONE = Sample(2, 3)
GOOD = np.array([[1.0, -4.0]], "float32")


def test_the_difference_is_the_largest_of_all_in_the_scale_of_its_output():
    pairs = [
        (ONE, "large", 100 * GOOD, 100 * GOOD + 0.1),
        (ONE, "small", GOOD, GOOD + 0.01),
        (Sample(5, 7, "any", "step"), "small", GOOD / 2, GOOD / 2 + [[0.0, 0.02]]),
    ]
    found = verify.compare(pairs, 0.5)
    assert found.output == "small"
    assert found.absolute == pytest.approx(0.02, rel=1e-4)
    assert found.relative == pytest.approx(0.005, rel=1e-4)
    assert found.sample == "batch 5 of 7 steps, padded anywhere, step by step"
    assert found.tolerance == 0.5


def test_values_that_are_no_numbers_have_to_be_the_same():
    odd = np.array([[np.nan, np.inf]], "float32")
    pair = (ONE, "y", GOOD, GOOD)
    assert verify.compare([pair, (ONE, "y", odd, odd)]).absolute == 0
    for given, told in (
        (GOOD, "is 1.0 where the model's is nan, in 2 of 2 values"),
        (-odd, "is -inf where the model's is inf, in 1 of 2 values"),
        (odd[:, ::-1], "is inf where the model's is nan, in 2 of 2 values"),
    ):
        with pytest.raises(export.ParityError, match=f"output 'y' {told}: batch 2 of 3 steps"):
            verify.compare([pair, (ONE, "y", odd, given)])
    with pytest.raises(export.ParityError, match="output 'y' is nan where the model's is 1.0, in"):
        verify.compare([(ONE, "y", GOOD, GOOD * np.nan)])
    with pytest.raises(export.ParityError, match="nothing to compare: all values of the model's"):
        verify.compare([(ONE, "y", odd, odd)])
    with pytest.raises(export.ParityError, match=r"has the shape \(2,\) where the model's has"):
        verify.compare([(ONE, "y", GOOD, GOOD[0])])


# ------------------------------------------------------------------ arguments


FRAMES = np.ones((2, 5, 3))


def small():
    return small_model(kg.GatedRNN(3))


def test_arguments_are_checked_before_anything_is_written(tmp_path):
    path = tmp_path / "model"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "saved_model.pb").write_text("older")
    (tmp_path / "served" / "labels.txt").write_text("mine")
    before = contents(tmp_path)
    cases = [
        (TypeError, "`model` must be a Keras model", {"model": "model"}),
        (TypeError, "`path` must be a path. Received: path=None", {"path": None}),
        (ValueError, "`path` must name a file or a folder. Received: path=''", {"path": ""}),
        (
            ValueError,
            "SavedModel and 'labels.txt', which would be lost",
            {"path": tmp_path / "served"},
        ),
        (ValueError, "did you mean 'onnx'", {"format": "ONNX"}),
        (ValueError, "`format` must be one of .*Received: format=None$", {"format": None}),
        (ValueError, "`streaming` must be True or False", {"streaming": "yes"}),
        (TypeError, "takes no option `steaming`.*did you mean 'streaming'", {"steaming": True}),
        (ValueError, "inputs of 'small' by their names, .*Received: x$", {"sample": {"x": FRAMES}}),
        (ValueError, "Received: frames, y$", {"sample": {"frames": FRAMES, "y": FRAMES}}),
        (ValueError, "`model` must be built", {"model": keras.Sequential([kg.GatedRNN(3)])}),
        (ValueError, "`format` must be one of 'saved_model'", {"format": "saved-model"}),
        (ValueError, "Received: tolerance=0", {"tolerance": 0}),
        (TypeError, "takes no option `quantize`; its options: none", {"quantize": "int8"}),
        (ValueError, "the folder that `path` is in must exist", {"path": path / "a" / "b"}),
        (ValueError, "holds something other than a file of", {"path": tmp_path / "file"}),
        (ValueError, "holds something other than a file of", {"path": tmp_path / "folder"}),
        (ValueError, "`sample` must fit the inputs of 'small'", {"sample": np.ones((2, 5, 4))}),
        (ValueError, "`sample` must hold at least one sample", {"sample": np.ones((0, 5, 3))}),
        (ValueError, "`sample` must be an array", {"sample": "data"}),
    ]
    for error, message, changed in cases:
        arguments = {"model": small(), "path": path, **changed}
        with pytest.raises(error, match=message):
            export.export(**arguments)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("format", ["saved_model", "onnx", "litert", "openvino"])
def test_weights_that_are_not_finite_are_refused(format, tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4, name="ear")])
    kernel, *others = model.get_weights()
    kernel[0, 0] = np.nan
    model.set_weights([kernel, *others])
    with pytest.raises(ValueError, match=r"`model` must have finite weights.*ear.*kernel"):
        export.export(model, tmp_path / "m", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "format", "other"),
    [
        ("m.onnx", "saved_model", "onnx"),
        ("m.tflite", "onnx", "litert"),
        ("m.xml", "litert", "open"),
    ],
)
def test_a_path_that_ends_as_another_format_is_refused(name, format, other, tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4)])
    with pytest.raises(ValueError, match=f"`path` ends as a file of format '{other}.*`format` is"):
        export.export(model, tmp_path / name, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tolerance", [-1, 0, np.nan])
def test_tolerance_is_positive(tolerance, tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4)])
    with pytest.raises(ValueError, match="`tolerance` must be .*, or None for the default"):
        export.export(model, tmp_path / "m", tolerance=tolerance)


def test_a_sample_is_needed_where_no_data_can_be_made():
    for message, shape, dtype in [
        ("is of dtype string", (None,), "string"),
        (r"has the shape \(None, 8, None, 3\)", (8, None, 3), "float32"),
    ]:
        given = keras.Input(shape, dtype=dtype, name="given")
        model = keras.Model(given, keras.layers.Identity(dtype=dtype)(given))
        with pytest.raises(
            ValueError, match=f"`sample` is needed: the input 'given' of .* {message}"
        ):
            Inputs(model).data()


def test_samples_by_name_and_in_order(rng):
    inputs = Inputs(whole_model())
    words, speaker = rng.integers(0, 7, (2, 6)), np.ones((2, 2))
    for sample in ([words, speaker], {"words": words, "inputs": speaker}):
        found = inputs.data(sample)
        assert [value.dtype for value in found] == ["int32", "float32"]
        np.testing.assert_array_equal(found[0], words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([[1.0, 0.5]], "must hold integers for 'words', .* dtype int32. Received: .* such as 0.5"),
        ([[1, 7]], "integers from 0 to 6 for 'words', which an Embedding .*: integers from 1 to 7"),
        ([[-1, 2]], "integers from 0 to 6 for 'words'.* Received: integers from -1 to 2"),
    ],
)
def test_samples_of_tokens_hold_what_the_model_reads(words, message):
    inputs = Inputs(whole_model())
    with pytest.raises(ValueError, match=f"`sample` .*{message}"):
        inputs.data([np.array(words), np.ones((1, 2))])


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(core.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="the folder that `path` is in must be one that you"):
        export.export(small(), tmp_path / "model")


def test_a_subclassed_model_with_two_arguments_is_refused(tmp_path):
    class Two(keras.Model):
        def call(self, a, b):
            return a + b

    model = Two(name="two")
    model(np.ones((1, 2, 3)), np.ones((1, 2, 3)))
    with pytest.raises(
        export.NotExportable, match="'two' is a subclassed model whose `call` takes"
    ):
        export.export(model, tmp_path / "model")


def test_backends_that_cannot_write_are_told_apart(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(export.NotExportable, match="Keras on torch cannot write a SavedModel"):
        saved_model.refuse(None)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(export.NotExportable, match="streaming=True needs Keras on TensorFlow"):
        saved_model.refuse(None, streaming=True)


def test_inspect_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder `path`"):
        export.inspect(tmp_path / "model")
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="`path` must be the folder of a SavedModel or a file"):
            export.inspect(path)


def test_a_format_without_streams_says_so(tmp_path, monkeypatch):
    module = types.SimpleNamespace(SUFFIX=".x", write=lambda model, path: None)
    monkeypatch.setattr(core, "_format", lambda name: module)
    with pytest.raises(export.NotExportable, match="the format 'onnx' holds no streams"):
        export.export(small(), tmp_path / "model", format="onnx", streaming=True)


@pytest.mark.parametrize("public", [export.export, Stream, output_names], ids=lambda p: p.__name__)
def test_examples_in_docstrings_run(public, quick):
    names = {"keras": keras, "numpy": np, "keras_gates": kg}
    (test,) = doctest.DocTestFinder(recurse=False).find(public, globs=names)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
