"""OpenVINO files: what OpenVINO's runtime makes of them against the Keras model."""

import re
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, MASK, golden_files, unpacked

import keras_gates as kg
from keras_gates.deployment import NotExportableError, export, inspect, verify
from keras_gates.deployment.openvino import OpenVINO
from keras_gates.deployment.spec import ModelSpec

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
if BACKEND != "tensorflow":
    pytest.skip("OpenVINO files are written by way of TensorFlow", allow_module_level=True)

LAYERS = keras.layers
SEQUENCES = {"GRUSequence", "LSTMSequence", "RNNSequence"}


@keras.saving.register_keras_serializable(package="test_openvino")
class LeakyCell(kg.GatedCell):
    """h' = 0.9 h + 0.1 φ(x W + b + h U)"""

    def update(self, x, u, states):
        (h,) = states
        return (0.9 * h + 0.1 * self.candidate(x.candidate + u.candidate),)


@keras.saving.register_keras_serializable(package="test_openvino")
def erfinv(x):
    return keras.ops.erfinv(x)


class Written:
    """A model as an OpenVINO file, compiled."""

    def __init__(self, model, folder):
        self.model, self.path = model, folder / "model.xml"
        spec, file = ModelSpec(model), OpenVINO()
        file.check(spec)
        self.found = file.write(spec, self.path)
        exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self.compiled = openvino.Core().compile_model(self.path, "CPU", exact)

    def run(self, **inputs):
        found = self.compiled(inputs)
        return {name: value for port, value in found.items() for name in port.names}

    def assert_equal(self, *batches):
        """The file gives what the model gives, for each batch of the input "frames"."""
        for frames in batches:
            found, expected = self.run(frames=frames), self.model(frames, training=False)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name].shape == value.shape
                np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-6, err_msg=name)


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


def small(layer, rng):
    frames = keras.Input((None, 3), name="frames")
    return randomized(keras.Model(frames, {"out": layer(frames)}, name="listener"), rng)


def sequences(rng, *sizes):
    """Batches that grow and shrink, because a compiled file keeps its memory between calls."""
    sizes = sizes or ((1, 1), (3, 40), (2, 5), (4, 40), (1, 2))
    return [rng.normal(size=(*size, 3)).astype("float32") for size in sizes]


# ---------------------------------------------------------------------- equality


def test_operators_of_its_own(tmp_path, rng):
    """Sigmoid, tanh and relu in every cell and direction, without a mask."""
    relu = {"candidate_activation": "relu"}
    layers = {
        "gru": kg.GatedRNN(4, return_sequences=True, grad_clip_norm=1.0),
        "gru_before": kg.GatedRNN(4, reset_after=False, **relu),
        "lstm": kg.GatedRNN(3, cell="lstm", output_activation="tanh", return_state=True, **relu),
        "simple": kg.GatedRNN(4, cell="simple", candidate_activation="sigmoid"),
        "gru_of_keras": LAYERS.GRU(4, recurrent_activation="tanh"),
        "backwards": LAYERS.LSTM(4, go_backwards=True, return_sequences=True),
        "both": LAYERS.Bidirectional(kg.GatedRNN(3, return_sequences=True), merge_mode="mul"),
        "per_step": LAYERS.TimeDistributed(LAYERS.Dense(2, "relu")),
    }
    written = Written(parallel(layers, rng, [LAYERS.LayerNormalization()]), tmp_path)
    written.assert_equal(*sequences(rng))
    assert written.found.operators.keys() >= SEQUENCES
    assert "Loop" not in written.found.operators
    nan, none, precision = written.found.notes
    assert "OpenVINO's own recurrent operators may turn NaN into numbers" in nan
    assert "INFERENCE_PRECISION_HINT=f32, as it was when it was compared and timed" in precision
    assert "at least one sequence" in none


def test_other_activations_and_cells_run_as_scans(tmp_path, rng):
    per_gate = {"update": "hard_sigmoid", "reset": "softsign_gate"}
    layers = {
        "gru": kg.GatedRNN(4, gate_activation=per_gate, candidate_activation="relu"),
        "lstm": kg.GatedRNN(
            4, "lstm", candidate_activation="silu", output_activation="tanh", return_sequences=True
        ),
        "own": kg.GatedRNN(4, LeakyCell, go_backwards=True, return_sequences=True),
    }
    model = parallel(layers, rng)
    # One tensor under two names, which OpenVINO makes one of.
    model = keras.Model(model.inputs[0], {**model.output, "again": model.output["lstm_0"]})
    written = Written(model, tmp_path)
    written.assert_equal(*sequences(rng))
    assert written.found.operators["TensorIterator"] == 3
    assert not written.found.operators.keys() & SEQUENCES
    notes = " ".join(written.found.notes)
    assert "It needs at least one time step" in notes
    assert "own recurrent operators" not in notes
    assert set(written.found.signatures["serving_default"]["outputs"]) == set(model.output)
    name = model.layers[-1].name
    assert f"{name} runs as a Scan, because ONNX has no operator for the cell LeakyCell." in (
        written.found.notes
    )
    assert inspect(written.path).notes == written.found.notes


@pytest.mark.slow
def test_layers_whose_equations_are_not_known_run_as_loops(tmp_path, rng):
    class OwnRNN(kg.GatedRNN):
        pass

    cells = [kg.GRUCell(4), kg.GRUCell(3, candidate_activation="relu6")]
    layers = {"own": OwnRNN(4, name="own"), "stack": LAYERS.RNN(cells, name="stack")}
    written = Written(parallel(layers, rng), tmp_path)
    written.assert_equal(*sequences(rng))
    assert written.found.operators["Loop"] == 2
    note, *_ = written.found.notes
    assert note.startswith(
        "Recurrent layers run as Loops, which are slower. own runs as a Loop, be"
    )


@pytest.mark.slow
def test_every_kind_of_padding(tmp_path, rng):
    """Masks that a layer makes, and masks that are given to one."""
    frames = keras.Input((None, 3), name="frames")
    masked = LAYERS.Masking()(frames)
    zeros = kg.GatedRNN(3, return_sequences=True, zero_output_for_mask=True)
    given = keras.ops.any(keras.ops.not_equal(frames, 0.0), axis=-1)
    outputs = {
        "both": LAYERS.Bidirectional(kg.GatedRNN(3, return_sequences=True))(masked),
        "zeros": zeros(frames, mask=given),
        "lstm": LAYERS.LSTM(4)(frames, mask=given),
    }
    written = Written(randomized(keras.Model(frames, outputs), rng), tmp_path)
    padded, one, right = sequences(rng, (6, 9), (3, 1), (2, 40))
    padded[~MASK] = right[1, 20:] = one[1] = 0
    written.assert_equal(padded, one, right, padded)
    assert "passes over the lengths that masks become" in written.found.notes[0]


# ---------------------------------------------------------------------- export


def test_export_in_a_process_of_its_own(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(verify, "REPETITIONS", 2)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    hidden = kg.GatedRNN(4)(LAYERS.Embedding(7, 3)(tokens))
    model = randomized(keras.Model(tokens, LAYERS.Dense(2, name="score")(hidden)), rng)
    report = export(model, tmp_path / "model", "openvino")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert report.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert report.signatures == {
        "serving_default": {
            "inputs": {"tokens": {"shape": [None, None], "dtype": "int32"}},
            "outputs": {"score": {"shape": [None, 2], "dtype": "float32"}},
        }
    }
    assert report.operators["GRUSequence"] == 1
    assert report.difference.relative < 1e-5
    assert len({sample.length for sample in report.samples}) >= 3
    assert len({sample.batch for sample in report.samples}) >= 3
    shown = inspect(tmp_path / "model.xml")
    assert (shown.size, shown.signatures) == (report.size, report.signatures)


# ---------------------------------------------------------------------- refusals


@pytest.mark.slow
def test_stateful_is_refused(tmp_path, rng):
    frames = keras.Input(batch_shape=(2, None, 3))
    model = keras.Model(frames, kg.GatedRNN(4, stateful=True, name="memory")(frames))
    message = "'memory' is stateful, and an OpenVINO file remembers nothing between calls."
    with pytest.raises(NotExportableError, match=re.escape(message)):
        export(model, tmp_path / "m", "openvino")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_refused(dtype, tmp_path, rng):
    model = small(kg.GatedRNN(4, dtype=f"mixed_{dtype}", name="ear"), rng)
    with pytest.raises(
        NotExportableError, match=f"'ear' computes in {dtype}, and an OpenVINO file"
    ):
        export(model, tmp_path / "m", "openvino")


@pytest.mark.slow
def test_a_stream(tmp_path, rng):
    """`export` has compared the file, chunk by chunk."""
    layer = kg.GatedRNN(4, "lstm", candidate_activation="softsign", name="rnn")
    report = export(small(layer, rng), tmp_path / "m", "openvino", streaming=True)
    assert list(report.signatures) == ["chunk"]
    assert {"rnn_hidden", "rnn_cell"} < set(report.signatures["chunk"]["inputs"])
    assert {sample.mode for sample in report.samples} == {"chunk"}
    cells = [kg.GRUCell(4), kg.GRUCell(3, candidate_activation="relu6")]
    model = small(keras.layers.RNN(cells, name="stack"), rng)
    with pytest.raises(NotExportableError, match="cannot be a stream in OpenVINO. .* Loops"):
        export(model, tmp_path / "m", "openvino", streaming=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_what_openvino_cannot_convert_is_named(tmp_path, rng):
    layer = kg.GatedRNN(4, candidate_activation=erfinv)
    with pytest.raises(
        NotExportableError, match="no operator for Erfinv in 'listener'. Take another"
    ):
        export(small(layer, rng), tmp_path / "m", "openvino")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["openvino", "onnx", "tf2onnx"])
def test_missing_package_is_named_with_the_command(package, tmp_path, rng, monkeypatch):
    model = small(kg.GatedRNN(3), rng)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "keras_gates\[openvino\]"'):
        export(model, tmp_path / "m", "openvino")


@pytest.mark.parametrize("path", golden_files("openvino"), ids=lambda path: path.stem)
def test_old_files_run(path, tmp_path):
    frames, scores = unpacked(path, tmp_path)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(tmp_path / "model.xml"), "CPU", exact)
    np.testing.assert_allclose(model({"frames": frames})["scores"], scores, atol=1e-5)
    assert inspect(tmp_path / "model.xml").operators["Loop"] == 2
