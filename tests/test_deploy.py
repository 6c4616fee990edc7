"""`keras_gates.export`: a written file does what its model does, without this package."""

import contextlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from deployed import MODELS, contents, masked_model, of, small_model
from helpers import golden_files, run_python, unpacked

import keras_gates as kg
from keras_gates import deployment, engine
from keras_gates.deployment.loops import PlainEngine, plain_loops
from keras_gates.deployment.names import output_names, unique
from keras_gates.deployment.saved_model import SavedModel
from keras_gates.deployment.spec import ModelSpec
from keras_gates.deployment.streaming import Stream


@pytest.mark.slow
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


@pytest.mark.slow
@of("cells", "masked", "whole", "stateful")
def test_a_file_consists_of_plain_operators(artifact):
    _, path, report = artifact
    assert report.operators["MatMul"] > 0
    assert not [name for name in report.operators if "Xla" in name or "PyFunc" in name]
    for function in tf.saved_model.load(path).signatures.values():
        graph = function.graph.as_graph_def()
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        assert not [node.name for node in nodes if "_gradient_op_type" in node.attr]


@pytest.mark.slow
@of("masked")
def test_samples_hold_every_kind_of_padding(artifact):
    _, _, report = artifact
    whole = {sample.mask for sample in report.samples if sample.mode == "whole"}
    assert whole == {"none", "right", "any"}
    assert {"step", "chunk"} < {sample.mode for sample in report.samples}
    assert {sample.mask for sample in report.samples if sample.mode == "step"} == {"none", "any"}


@pytest.mark.slow
@of("whole")
def test_names_are_the_users_or_plain(artifact):
    _, _, report = artifact
    (signature,) = report.signatures.values()
    assert signature["inputs"] == {
        "inputs": {"shape": [None, 2], "dtype": "float32"},
        "words": {"shape": [None, None], "dtype": "int32"},
    }
    assert list(signature["outputs"]) == ["outputs", "scores_1"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_report_begins_with_the_operators_that_run_over_time():
    operators = {"Cast": 9, "Add": 8, **{f"Op{i}": 7 for i in range(8)}, "LSTM": 2, "Loop": 1}
    report = deployment.ExportReport("model.onnx", "onnx", 10, {}, operators, [])
    assert "operators: LSTM 2, Loop 1, Cast 9, Add 8, Op0 7, Op1 7, Op2 7, Op3 7 and 4 more" in (
        str(report)
    )


@pytest.mark.slow
@of("cells")
def test_inspect_tells_what_is_in_a_file(artifact):
    _, path, report = artifact
    found = deployment.inspect(path)
    assert (found.signatures, found.operators, found.size, found.format) == (
        report.signatures,
        report.operators,
        report.size,
        "saved_model",
    )
    assert found.difference is None
    assert "serving_default(frames: float32 (any, any, 3))" in str(found)


def test_names_are_the_same_at_every_export_of_a_process():
    def all_names():
        model = masked_model()
        stream = Stream(ModelSpec(model))
        return ModelSpec(model).names, output_names(model), [state.name for state in stream.states]

    assert all_names() == all_names()


@pytest.mark.slow
def test_names_are_made_unique_in_allowed_characters():
    assert unique(["Frames", "frames", "a b", "7", "a_b"]) == [
        "frames",
        "frames_1",
        "a_b",
        "x7",
        "a_b_1",
    ]


@pytest.mark.slow
@of("masked")
def test_tfsm_layer_loads_it(artifact, rng):
    model, path, _ = artifact
    x = rng.normal(size=(2, 9, 3)).astype("float32")
    expected = model.predict_on_batch(x)[0]
    found = keras.layers.TFSMLayer(path, call_endpoint="serve")(x)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    found = keras.layers.TFSMLayer(path, call_endpoint="serving_default")(x)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)


@pytest.mark.slow
@of("whole")
def test_serve_takes_the_structure_of_the_model(artifact, rng):
    model, path, _ = artifact
    words, speaker = rng.integers(0, 7, (2, 6)).astype("int32"), np.ones((2, 2), "float32")
    found = keras.layers.TFSMLayer(path)([words, speaker])
    for given, expected in zip(found, model.predict_on_batch([words, speaker]), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.slow
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
    assert "step" in deployment.inspect(tmp_path / "model").signatures


def test_a_process_of_its_own_runs_the_file(tmp_path):
    """As users have it, without the worker of these tests."""
    model = small_model(kg.GatedRNN(3))
    assert deployment.export(model, tmp_path / "model").difference.relative < 1e-5


def test_a_file_that_differs_is_not_left_and_an_older_one_is_kept(quick, tmp_path, monkeypatch):
    path = tmp_path / "model"
    model = small_model(kg.GatedRNN(3))
    deployment.export(model, path)
    before = contents(tmp_path)
    write = SavedModel.write

    def wrong(self, spec, beside):
        right = model.get_weights()
        model.set_weights([1.01 * w for w in right])
        try:
            return write(self, spec, beside)
        finally:
            model.set_weights(right)

    monkeypatch.setattr(SavedModel, "write", wrong)
    with pytest.raises(
        deployment.ParityError, match="'small' as saved_model: the file differs from its"
    ) as error:
        deployment.export(model, path)
    for part in (
        "tolerance 1e-05",
        "its output 'outputs'",
        "batch ",
        f"Nothing was written to {path}",
    ):
        assert part in str(error.value)
    assert contents(tmp_path) == before
    with pytest.raises(deployment.ParityError):
        deployment.export(model, tmp_path / "other")
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_newer_file_takes_the_place_of_an_older_one(quick, tmp_path):
    path = tmp_path / "model"
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text("old")
    (path / "variables" / "variables.data-00000-of-00002").write_text("old")
    model = small_model(kg.GatedRNN(3))
    report = deployment.export(model, str(path), sample=np.ones((2, 5, 3)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert not (path / "variables" / "variables.data-00000-of-00002").exists()
    assert 5 in {sample.length for sample in report.samples}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["writing", "running"])
def test_a_failure_leaves_nothing(when, quick, tmp_path, monkeypatch):
    model = small_model(kg.GatedRNN(3))
    write = SavedModel.write

    def fails(self, spec, beside):
        written = write(self, spec, beside)
        if when == "writing":
            raise OSError("no space left")
        (beside / "saved_model.pb").write_bytes(b"cut off")
        return written

    monkeypatch.setattr(SavedModel, "write", fails)
    error = {"writing": OSError, "running": deployment.ParityError}[when]
    message = {"writing": "no space", "running": "does not run in a process without keras_gates"}
    with pytest.raises(error, match=message[when]):
        deployment.export(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    assert engine.used(model.layers[0]) is None


@pytest.mark.slow
def test_plain_loops_end_with_their_context():
    model = small_model(keras.layers.Bidirectional(kg.GatedRNN(3)))
    both = model.layers[0]
    with contextlib.suppress(ZeroDivisionError), plain_loops(ModelSpec(model)):
        for layer in (both.forward_layer, both.backward_layer):
            assert isinstance(engine.used(layer), PlainEngine)
        raise ZeroDivisionError
    assert engine.used(both.forward_layer) is engine.used(both.backward_layer) is None


def test_plain_loops_keep_the_shape_of_no_sequences_and_of_no_steps(rng):
    import tensorflow as tf

    layer = kg.GatedRNN(3, "lstm", return_sequences=True)
    model = keras.Sequential([keras.Input((None, 2)), layer])
    with plain_loops(ModelSpec(model)):
        run = tf.function(model, input_signature=[tf.TensorSpec((None, None, 2))])
        for shape in ((0, 13, 2), (0, 3, 2), (4, 0, 2), (0, 0, 2), (2, 9, 2)):
            assert run(np.zeros(shape, "float32")).shape == (*shape[:2], 3)
