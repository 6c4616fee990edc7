"""What `export` and `inspect` are given: errors that name the argument, and write nothing."""

import contextlib
import doctest

import keras
import numpy as np
import pytest
from deployed import contents, small_model, whole_model

import keras_gates as kg
from keras_gates import deployment
from keras_gates.deployment import core
from keras_gates.deployment.names import output_names
from keras_gates.deployment.saved_model import SavedModel
from keras_gates.deployment.spec import ModelSpec
from keras_gates.deployment.streaming import Stream
from keras_gates.deployment.verify import refuse_not_finite

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
        (TypeError, r"Make one of it: keras.Seq.*, layer\]\)$", {"model": kg.GatedRNN(3)}),
        (TypeError, "`path` must be a path. Received: path=None", {"path": None}),
        (ValueError, "`path` must end with the name of a file. Received: path=''", {"path": ""}),
        (
            ValueError,
            "of format 'saved_model' and would be lost, 'labels.txt': move it",
            {"path": tmp_path / "served"},
        ),
        (ValueError, r"did you mean 'onnx'\?$", {"format": "ONNX"}),
        (ValueError, "`sample` must be an array. NumPy says: ", {"sample": [[1.0, 2.0], [1.0]]}),
        (ValueError, "`format` must be one of .*Received: format=7$", {"format": 7}),
        (ValueError, "`streaming` must be True or False", {"streaming": "yes"}),
        (ValueError, "`opset` must be one of 13, 14", {"format": "onnx", "opset": 9}),
        (TypeError, "'saved_model' takes no option `opset`", {"opset": 15}),
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
        (ValueError, "`sample` must be of numbers for 'fr", {"sample": np.full((2, 5, 3), "a")}),
        (ValueError, "of real numbers, .*dtype complex128", {"sample": FRAMES * 1j}),
    ]
    for error, message, changed in cases:
        arguments = {"model": small(), "path": path, **changed}
        with pytest.raises(error, match=message):
            deployment.export(**arguments)
    assert contents(tmp_path) == before


def test_an_input_that_is_called_as_a_word_of_python(tmp_path):
    inputs = keras.Input((None, 3), name="in"), keras.Input((None, 3), name="Lambda")
    model = keras.Model(inputs, kg.GatedRNN(4)(keras.layers.add(inputs)))
    written = deployment.export(model, tmp_path / "model")
    assert [*written.signatures["serving_default"]["inputs"]] == ["in_", "lambda_"]


@pytest.mark.parametrize("format", ["saved_model", "onnx", "litert", "openvino"])
def test_weights_that_are_not_finite_are_refused(format, tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4, name="ear")])
    kernel, *others = model.get_weights()
    kernel[0, 0] = np.nan
    model.set_weights([kernel, *others])
    with pytest.raises(ValueError, match=r"`model` must have finite weights.*ear.*kernel"):
        deployment.export(model, tmp_path / "m", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("served.v1", "saved_model"),
        ("served.tf", "saved_model"),
        ("served.final", "saved_model"),
        ("m.onnx", "onnx"),
        ("M.TFLITE", "litert"),
        ("m.xml", "openvino"),
    ],
)
def test_the_format_is_that_of_the_suffix(path, format, tmp_path, monkeypatch):
    asked = []

    def chosen(name):
        asked.append(name)
        raise RuntimeError

    monkeypatch.setattr(deployment.core, "_format", chosen)
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4)])
    with pytest.raises(RuntimeError):
        deployment.export(model, tmp_path / path)
    assert asked == [format]


@pytest.mark.parametrize(
    ("suffix", "meant"),
    [(".tflit", ".tflite"), (".ONX", ".onnx"), (".lite", ".tflite"), (".xm", ".xml")],
)
def test_a_suffix_with_a_typing_error_is_no_name_of_a_folder(suffix, meant, tmp_path):
    path = tmp_path / f"m{suffix}"
    message = f"`path` must end in .*format='saved_model'.*{suffix}'; did you mean '{meant}'"
    with pytest.raises(ValueError, match=message):
        deployment.export(small(), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "hint"),
    [
        (".keras", "model.save"),
        (".H5", "model.save_weights"),
        (".pb", "which saved_model.pb is in"),
    ],
)
def test_a_folder_is_not_named_as_another_kind_of_file(suffix, hint, tmp_path):
    path = tmp_path / f"m{suffix}"
    with pytest.raises(ValueError, match=f"a folder of any name, .*{hint}.*{suffix}'$"):
        deployment.export(small(), path)
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
        deployment.export(model, tmp_path / name, format)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise FileNotFoundError(2, "No such file or directory", "/hidden")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refused)
    with pytest.raises(PermissionError, match="folder that `path` is in .* Received: path='.*/m'"):
        deployment.export(small(), tmp_path / "m")


def test_a_name_that_no_file_can_have_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder `path`"):
        deployment.inspect(tmp_path / ("a" * 300))


def test_samples_that_are_not_finite_are_refused_where_the_model_does_not_take_them(tmp_path):
    inputs = [keras.Input((None, 2), name=name) for name in ("left", "right")]
    layer = kg.GatedRNN(2, stateful=False)
    model = keras.Model(inputs, layer(keras.layers.Concatenate()(inputs)))
    sample = {name: np.zeros((3, 4, 2), "float32") for name in ("left", "right")}
    sample["right"][2, 1, 0] = np.nan
    message = r"^`sample\['right'\]` must be of finite .*: nan at time step 1 in sample 2$"
    with pytest.raises(ValueError, match=message):
        kg.export(model, tmp_path / "served", sample=sample)
    assert not [*tmp_path.iterdir()]
    one, stateful = keras.Input((None, 2)), keras.Input((None, 2), batch_size=2)
    filled = keras.ops.where(keras.ops.isfinite(stateful), stateful, 0.0)
    layer = kg.GatedRNN(2, stateful=True)
    for model, error in (
        (keras.Model(one, kg.GatedRNN(2)(one)), "`data` must be of finite numbers"),
        (keras.Model(stateful, layer(filled)), None),
    ):
        with pytest.raises(ValueError, match=error) if error else contextlib.nullcontext():
            refuse_not_finite(ModelSpec(model), "data", [sample["right"]])
    assert not np.any(layer.states[0])  # which are as they were


@pytest.mark.parametrize("tolerance", [-1, 0, np.nan])
def test_tolerance_is_positive(tolerance, tmp_path):
    model = keras.Sequential([keras.Input((None, 3)), kg.GatedRNN(4)])
    with pytest.raises(ValueError, match="`tolerance` must be .*, or None for the default"):
        deployment.export(model, tmp_path / "m", tolerance=tolerance)


@pytest.mark.slow
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
            ModelSpec(model).data()


@pytest.mark.slow
def test_samples_by_name_and_in_order(rng):
    inputs = ModelSpec(whole_model())
    words, speaker = rng.integers(0, 7, (2, 6)), np.ones((2, 2))
    for sample in ([words, speaker], {"words": words, "inputs": speaker}):
        found = inputs.data(sample)
        assert [value.dtype for value in found] == ["int32", "float32"]
        np.testing.assert_array_equal(found[0], words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([[1.0, 0.5]], "must hold integers for 'words', .* dtype int32. Received: .* such as 0.5"),
        ([[1, 7]], "integers from 0 to 6 for 'words', which an Embedding .*: integers from 1 to 7"),
        ([[-1, 2]], "integers from 0 to 6 for 'words'.* Received: integers from -1 to 2"),
    ],
)
def test_samples_of_tokens_hold_what_the_model_reads(words, message):
    inputs = ModelSpec(whole_model())
    with pytest.raises(ValueError, match=f"`sample` .*{message}"):
        inputs.data([np.array(words), np.ones((1, 2))])


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(core.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="the folder that `path` is in must be one that you"):
        deployment.export(small(), tmp_path / "model")


@pytest.mark.slow
def test_a_subclassed_model_with_two_arguments_is_refused(tmp_path):
    class Two(keras.Model):
        def call(self, a, b):
            return a + b

    model = Two(name="two")
    model(np.ones((1, 2, 3)), np.ones((1, 2, 3)))
    with pytest.raises(
        deployment.NotExportableError, match="'two' is a subclassed model whose `call` takes"
    ):
        deployment.export(model, tmp_path / "model")


@pytest.mark.slow
def test_backends_that_cannot_write_are_told_apart(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(
        deployment.NotExportableError, match="Keras on torch cannot write a SavedModel"
    ):
        SavedModel().check(None)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(
        deployment.NotExportableError, match="streaming=True needs Keras on TensorFlow"
    ):
        SavedModel().check(None, streaming=True)


@pytest.mark.parametrize("name", ["variables/mine.txt", "assets/vocabulary.txt", "eval/notes"])
def test_what_is_put_into_the_folder_of_a_saved_model_is_not_lost(name, quick, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    assert not deployment.export(small(), path).replaced  # an empty folder is no older file
    assert deployment.export(small(), path).replaced
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"would be lost, '{name}': move it away"):
        deployment.export(small(), path)
    assert (path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_what_is_no_openvino_file_is_not_lost(name, tmp_path):
    (tmp_path / name).write_text("<mine/>")
    with pytest.raises(ValueError, match=f"would be lost, '{name}': move it away"):
        deployment.export(small(), tmp_path / "model", "openvino")
    assert (tmp_path / name).read_text() == "<mine/>"


@pytest.mark.slow
@pytest.mark.parametrize("path", [".", "..", "new/"])
def test_a_file_has_a_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`path` must end with the name of a file"):
        deployment.export(small(), path, "onnx")


@pytest.mark.slow
def test_texts_are_samples_too():
    given = keras.Input((1,), dtype="string", name="given")
    inputs = ModelSpec(keras.Model(given, keras.layers.Identity(dtype="string")(given)))
    for dtype in (str, object):
        (found,) = inputs.data(np.array([["a b"], ["c"]], dtype))
        assert found.dtype.kind == "U"


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.xml", "saved_model.pb"])
def test_damaged_files_are_told(name, tmp_path):
    (tmp_path / name).write_text("no model")
    path = tmp_path if name == "saved_model.pb" else tmp_path / name
    with pytest.raises(ValueError, match="`path` is not a file of format '.*', or damaged: "):
        deployment.inspect(path)


def test_inspect_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(TypeError, match="`path` must be a path. Received: path=None"):
        deployment.inspect(None)
    with pytest.raises(FileNotFoundError, match="there is no file or folder `path`"):
        deployment.inspect(tmp_path / "model")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "m.keras").write_text("a model")
    with pytest.raises(ValueError, match="deployment.inspect_keras tells what is in a .keras file"):
        deployment.inspect(tmp_path / "m.keras")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="`path` must be the folder of a SavedModel or a file"):
            deployment.inspect(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "public", [deployment.export, Stream, output_names], ids=lambda p: p.__name__
)
def test_examples_in_docstrings_run(public, quick):
    names = {"keras": keras, "numpy": np, "keras_gates": kg}
    (test,) = doctest.DocTestFinder(recurse=False).find(public, globs=names)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
