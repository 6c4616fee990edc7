"""load_keras2: files that Keras 2 wrote compute what they did there."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
import reference
from helpers import GOLDEN, leave_out_for_time

import keras_gates as kg

FILES = sorted(GOLDEN.glob("keras_2*.zip"))
UNITS = 4


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def folder(request, tmp_path_factory):
    """The files of one version of Keras 2, and what their models computed there; see
    golden/make_keras2.py."""
    folder = tmp_path_factory.mktemp("keras2")
    leave_out_for_time(request.param != FILES[-1])
    with zipfile.ZipFile(request.param) as packed:
        packed.extractall(folder)
    with np.load(folder / "expected.npz") as arrays:
        return folder, dict(arrays)


@pytest.mark.parametrize(
    "file", ["sequential.h5", "sequential.keras", "functional.h5", "functional.keras", "cudnn.h5"]
)
def test_models_compute_what_they_did(folder, file):
    folder, arrays = folder
    model = kg.load_keras2(folder / file)
    copy = kg.from_keras(model, grad_clip_norm=1.0)
    for one in (model, copy):
        found = keras.tree.flatten(one(arrays["frames"]))
        expected = [v for name, v in arrays.items() if name.startswith(file.split(".")[0])]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5)
    assert len({round(float(v), 4) for v in np.ravel(expected[0])}) > 4


def test_what_was_loaded_is_saved_as_of_keras_3(folder, tmp_path):
    folder, arrays = folder
    model = kg.load_keras2(folder / "sequential.h5")
    model.save(tmp_path / "new.keras")
    again = keras.models.load_model(tmp_path / "new.keras")
    np.testing.assert_array_equal(again(arrays["frames"]), model(arrays["frames"]))


def test_a_file_under_another_name(folder, tmp_path):
    """Until TensorFlow 2.12 a file named .keras was of the format of .h5."""
    folder, arrays = folder
    (tmp_path / "model.keras").write_bytes((folder / "sequential.h5").read_bytes())
    found = kg.load_keras2(str(tmp_path / "model.keras"))(arrays["frames"])
    np.testing.assert_allclose(found, arrays["sequential_0"], atol=2e-6)


# ---------------------------------------------------------------------- files made up here


def layer(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}


def recurrent(kind, name, **config):
    """What Keras 2.0 wrote, on the whole: there was no reset_after."""
    activation = {"recurrent_activation": "hard_sigmoid"} if kind != "SimpleRNN" else {}
    initializer = {
        "class_name": "VarianceScaling",
        "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "normal", "seed": None},
    }
    config = {
        "units": UNITS, "activation": "tanh", **activation, "use_bias": True, "implementation": 0,
        "return_sequences": True, "go_backwards": False, "stateful": False, "unroll": False,
        "kernel_initializer": initializer, "dropout": 0.0, "recurrent_dropout": 0.0,
        "bias_initializer": {"class_name": "Zeros", "config": {"dtype": "float32"}}, **config,
    }  # fmt: skip
    return layer(kind, name, **config)


def written(path, model, weights, version="2.0.8"):
    with h5py.File(path, "w") as file:
        if model is not None:
            file.attrs["model_config"] = json.dumps(model).encode()
        file.attrs["keras_version"] = version.encode()
        group = file.create_group("model_weights")
        # A long list is in several attributes.
        names = [name.encode() for name in weights]
        group.attrs["layer_names0"], group.attrs["layer_names1"] = names[:1], names[1:]
        for name, values in weights.items():
            inner = group.create_group(name)
            keys = [f"{name}/weight_{k}:0" for k in range(len(values))]
            inner.attrs["weight_names"] = [key.encode() for key in keys]
            for key, value in zip(keys, values, strict=True):
                inner[key] = value
    return path


def sequential(*layers):
    return {"class_name": "Sequential", "config": list(layers)}  # no name before Keras 2.2.3


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "SimpleRNN"])
def test_the_oldest_files(rng, tmp_path, kind):
    blocks = {"GRU": 3, "LSTM": 4, "SimpleRNN": 1}[kind]
    shapes = [(3, blocks * UNITS), (UNITS, blocks * UNITS), (blocks * UNITS,)]
    weights = [rng.normal(size=shape) for shape in shapes]
    config = sequential(recurrent(kind, "rnn", batch_input_shape=[None, None, 3]))
    path = written(tmp_path / "model.hdf5", config, {"rnn": weights})
    x = rng.normal(size=(2, 5, 3))
    slope = "hard_sigmoid_keras2"
    activations = {**reference.ACTIVATIONS, slope: (lambda a: np.clip(0.2 * a + 0.5, 0, 1), None)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "ACTIVATIONS", activations)
        cell = {
            "GRU": lambda: reference.GRU(weights, gate=slope, reset_after=False),
            "LSTM": lambda: reference.LSTM(weights, gate=slope),
            "SimpleRNN": lambda: reference.Simple(weights),
        }[kind]()
    expected, _ = reference.Sequence(cell).forward(x)
    model = kg.load_keras2(path)
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
    np.testing.assert_allclose(kg.from_keras(model)(x), expected, atol=1e-5)


def test_states_of_a_known_batch(rng, tmp_path):
    config = sequential(recurrent("SimpleRNN", "rnn", batch_input_shape=[2, 5, 3], stateful=True))
    weights = [rng.normal(size=shape) for shape in [(3, UNITS), (UNITS, UNITS), (UNITS,)]]
    model = kg.load_keras2(written(tmp_path / "model.h5", config, {"rnn": weights}))
    assert model.layers[0].stateful
    assert model.input_shape == (2, 5, 3)
    x = rng.normal(size=(2, 5, 3))
    assert np.abs(model(x) - model(x)).max() > 1e-3


@keras.saving.register_keras_serializable("test_convert_keras2")
class Scaled(keras.layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.shift = self.add_weight(shape=shape[-1:], name="shift")

    def call(self, x):
        return x * self.factor + self.shift


def bent(x):
    return 0.5 * keras.ops.tanh(x)


def test_classes_and_functions_of_ones_own(rng, tmp_path):
    config = sequential(
        layer("Mine", "first", factor=1.0, batch_input_shape=[None, 5, 3], time_major=False),
        recurrent("SimpleRNN", "rnn", activation="bent"),
        layer(
            "Mine",
            "mine",
            factor=2.0,
            dtype={"class_name": "Policy", "config": {"name": "float32"}},
        ),
        layer("test_convert_keras2>Scaled", "scaled", factor=3.0),
    )
    weights = [rng.normal(size=shape) for shape in [(3, UNITS), (UNITS, UNITS), (UNITS,)]]
    shifts = rng.normal(size=(2, UNITS))
    path = written(
        tmp_path / "m.h5",
        config,
        {"first": [np.zeros(3)], "rnn": weights, "mine": shifts[:1], "scaled": shifts[1:]},
    )
    model = kg.load_keras2(path, {"Mine": Scaled, "bent": bent})
    x = rng.normal(size=(2, 1, 3))
    expected = 0.5 * np.tanh(x[:, 0] @ weights[0] + weights[2])
    expected = 3 * (2 * expected + shifts[0]) + shifts[1]
    np.testing.assert_allclose(model(x)[:, 0], expected, atol=1e-5)


def test_a_mask_beside_an_initial_state_is_warned_of(tmp_path):
    def called(entry, *nodes):
        return {**entry, "name": entry["config"]["name"], "inbound_nodes": [list(nodes)]}

    layers = [
        {**called(layer("InputLayer", "x", batch_input_shape=[None, 5, 3])), "inbound_nodes": []},
        called(layer("Masking", "masking", mask_value=0.0), ["x", 0, 0, {}]),
        called(recurrent("GRU", "one", return_state=True), ["masking", 0, 0, {}]),
        called(recurrent("GRU", "two"), ["masking", 0, 0, {}], ["one", 0, 1, {}]),
    ]
    config = {
        "class_name": "Model",
        "config": {
            "name": "model",
            "layers": layers,
            "input_layers": [["x", 0, 0]],
            "output_layers": [["two", 0, 0]],
        },
    }
    path = written(tmp_path / "m.h5", config, {})
    with pytest.warns(UserWarning, match="'two' had a mask and an initial state") as caught:
        model = kg.load_keras2(path)
    assert model.output_shape == (None, 5, UNITS)
    assert model.input_shape == (None, 5, 3)
    assert [w.filename for w in caught if "had a mask" in str(w.message)] == [__file__]


def refused(tmp_path, *layers, version="2.0.8", **weights):
    return written(tmp_path / "model.h5", sequential(*layers), weights, version)


def test_errors(rng, tmp_path):
    rnn = recurrent("GRU", "rnn", batch_input_shape=[None, None, 3])
    for layers, message in (
        ([recurrent("GRU", "a", time_major=True)], "'a' has time_major=True.*Make the model in"),
        ([layer("InputLayer", "a", ragged=True)], "'a' takes ragged tensors"),
        ([layer("ThresholdedReLU", "a")], "'a' is a ThresholdedReLU.*custom_objects={'Thres"),
        ([layer("TFOpLambda", "tf.add")], "'tf.add' is an operation of TensorFlow"),
        ([layer("Lambda", "a", function=["code", None, None])], "'a' is a Lambda layer"),
        ([recurrent("GRU", "a")], "does not say what shape the model takes"),
    ):
        with pytest.raises(ValueError, match=message):
            kg.load_keras2(refused(tmp_path, *layers))
    with pytest.raises(ValueError, match=r"'rnn' has weights of shapes \[\(3, 12\).*the file has"):
        kg.load_keras2(refused(tmp_path, rnn, rnn=[rng.normal(size=(3, 11))]))
    with pytest.raises(ValueError, match="must be a file of Keras 2. Received: one of 1.2.2"):
        kg.load_keras2(refused(tmp_path, rnn, version="1.2.2"))
    with pytest.raises(ValueError, match="one of 3.1. It is loaded by keras.models.load_model"):
        kg.load_keras2(refused(tmp_path, rnn, version="3.1"))
    with pytest.raises(ValueError, match="`path` must be a .h5 or .keras file.*path=None"):
        kg.load_keras2(None)
    with pytest.raises(FileNotFoundError, match="There is none at '.*nowhere.h5'"):
        kg.load_keras2(tmp_path / "nowhere.h5")
    with pytest.raises(ValueError, match="must be a .h5 or .keras file of Keras 2. Received: '"):
        kg.load_keras2(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ValueError, match="a SavedModel. keras.layers.TFSMLayer runs it"):
        kg.load_keras2(tmp_path)


# ---------------------------------------------------------------------- files of weights alone


def plain(kind, **options):
    return getattr(keras.layers, kind)(UNITS, return_sequences=True, **options)


def gated(kind, **options):
    cell = {"GRU": "gru", "LSTM": "lstm", "SimpleRNN": "simple"}[kind]
    return kg.GatedRNN(UNITS, cell, return_sequences=True, **options)


def model_of(make, bidirectional=False):
    layers = [make("GRU"), make("LSTM"), make("GRU", reset_after=False), make("SimpleRNN")]
    if bidirectional:
        layers = [keras.layers.Bidirectional(layer) for layer in layers]
    return keras.Sequential([keras.Input((None, 3)), *layers, keras.layers.Dense(2)])


def test_weights_of_one_kind_of_model_are_those_of_the_other(rng, tmp_path):
    ours, theirs = model_of(gated), model_of(plain)
    x = rng.normal(size=(2, 5, 3))
    theirs.set_weights([rng.normal(size=w.shape) for w in theirs.get_weights()])
    # What Keras 2 called save_weights("weights.h5"), and Keras 3 saves within .h5 files.
    theirs.save(tmp_path / "theirs.h5")
    ours.load_weights(tmp_path / "theirs.h5")
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    theirs.set_weights([0.5 * w for w in theirs.get_weights()])
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    with pytest.raises(
        ValueError, match=r"no weights for 'gru_cell.*keras_gates.from_keras\(model"
    ):
        ours.load_weights(tmp_path / "theirs.weights.h5")
    again = model_of(plain)
    again.load_weights(tmp_path / "theirs.weights.h5")
    ours = kg.from_keras(again)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    ours.save_weights(tmp_path / "ours.weights.h5")
    ours.set_weights([0 * w for w in ours.get_weights()])
    ours.load_weights(tmp_path / "ours.weights.h5")
    again.set_weights([0 * w for w in again.get_weights()])
    again.set_weights(ours.get_weights())
    np.testing.assert_allclose(again(x), theirs(x), atol=1e-5)


def test_what_is_said_of_weights_alone_is_true(rng, tmp_path):
    theirs, x = model_of(plain), rng.normal(size=(2, 5, 3))
    theirs.set_weights([rng.normal(size=w.shape) for w in theirs.get_weights()])
    theirs.save_weights(tmp_path / "new.weights.h5")  # as Keras 2.12 and later wrote it
    advice = r"holds weights alone.*with keras.layers, call.*it: from_keras\(model\)"
    with pytest.raises(ValueError, match=advice):
        kg.load_keras2(tmp_path / "new.weights.h5")
    again = model_of(plain)
    again.load_weights(tmp_path / "new.weights.h5")
    np.testing.assert_allclose(kg.from_keras(again)(x), theirs(x), atol=1e-5)

    theirs.save(tmp_path / "whole.h5")
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "old.h5", "w") as alone:
        alone.attrs.update(whole["model_weights"].attrs)
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", alone)
    with pytest.raises(ValueError, match=r"with GatedRNN or Keras' layers, and call.*path\)`$"):
        kg.load_keras2(tmp_path / "old.h5")
    ours = model_of(gated)
    ours.load_weights(tmp_path / "old.h5")
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    (tmp_path / "old.h5").rename(tmp_path / "old.weights.h5")
    with pytest.raises(ValueError, match=r"a name that ends in .h5, not in .weights.h5"):
        kg.load_keras2(tmp_path / "old.weights.h5")


def test_weights_within_a_wrapper_interchange_as_files(rng, tmp_path):
    ours, theirs = model_of(gated, bidirectional=True), model_of(plain, bidirectional=True)
    x = rng.normal(size=(2, 5, 3))
    ours.set_weights([rng.normal(size=w.shape) for w in ours.get_weights()])
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    np.testing.assert_allclose(theirs(x), ours(x), atol=1e-5)
    theirs.set_weights([0.5 * w for w in theirs.get_weights()])
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
