"""Activations by name, by function and as layers, and what a saved model can name."""

import functools
import warnings

import keras
import numpy as np
import pytest

import keras_gates as kg
from keras_gates import activations


@keras.saving.register_keras_serializable(package="tests")
def half(x):
    return 0.5 * x


@keras.saving.register_keras_serializable(package="tests")
class Scaled:
    """A callable object with a config."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * keras.ops.tanh(x)

    def get_config(self):
        return {"factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def tanh(x):  # an unregistered function by the name of one of Keras' own
    return 3.0 * x


@pytest.mark.parametrize("name", activations.names())
def test_every_name_round_trips(name):
    found = activations.get(name, "gate_activation")
    assert found is getattr(keras.activations, name, None) or getattr(activations, name)
    assert activations.get(activations.serialize(found, ""), "") is found


@pytest.mark.parametrize("identifier", [half, "tests>half"])
def test_a_registered_function_round_trips(identifier):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = activations.get(identifier, "")
    assert found is half
    assert activations.get(activations.serialize(half, ""), "") is half


def test_layers_and_objects_round_trip():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leaky = activations.get(keras.layers.LeakyReLU(0.1), "")
        scaled = activations.get(Scaled(2.0), "")
    assert activations.get(activations.serialize(leaky, ""), "").negative_slope == 0.1
    assert activations.get(activations.serialize(scaled, ""), "").factor == 2.0


def test_keras_ops_by_another_path_is_saved_by_its_name():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert activations.get(keras.ops.tanh, "") is keras.ops.tanh
    assert activations.serialize(keras.ops.tanh, "") == "tanh"


UNSAVABLE = [lambda x: x, tanh, functools.partial(keras.activations.relu, max_value=6.0)]


@pytest.mark.parametrize("function", UNSAVABLE, ids=["lambda", "shadowing name", "partial"])
def test_an_unregistered_function_trains_with_a_warning_and_is_not_saved(function, tmp_path):
    with pytest.warns(UserWarning, match="(?s)works for training.*register_keras_serializable"):
        layer = kg.GatedRNN(3, candidate_activation=function)
    model = keras.Sequential([keras.Input((4, 2)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = model.get_weights()[0].copy()
    model.fit(np.ones((2, 4, 2)), np.ones((2, 1)), verbose=0)
    assert not np.array_equal(before, model.get_weights()[0])
    with pytest.raises(ValueError, match="(?s)`candidate_activation=.*neither saved nor.*register"):
        model.save(tmp_path / "model.keras")


def test_the_warning_names_the_argument():
    with pytest.warns(UserWarning, match=r"gate_activation\['reset'\]"):
        kg.GatedRNN(3, gate_activation={"reset": lambda x: x})
    with pytest.warns(UserWarning, match="output_activation"):
        kg.GatedRNN(3, cell="lstm", output_activation=lambda x: x)


def test_gate_defaults_and_dicts():
    cell = kg.LSTMCell(3, gate_activation={"forget": "relu"})
    assert {name: a.__name__ for name, a in cell.gate_activations.items()} == {
        "input": "sigmoid",
        "forget": "relu",
        "output": "sigmoid",
    }
    assert (
        kg.GRUCell(3, gate_activation={"reset": None}).get_config()["gate_activation"] == "sigmoid"
    )
    assert cell.output_activation is cell.candidate_activation is keras.activations.tanh
    assert cell.get_config()["gate_activation"]["forget"] == "relu"
    assert kg.GRUCell(3, gate_activation="relu").get_config()["gate_activation"] == "relu"
    assert kg.SimpleRNNCell(3).get_config()["gate_activation"] is None


def test_a_layer_with_weights_is_trained_and_shared():
    slope = keras.layers.PReLU()
    layer = kg.GatedRNN(3, cell="lstm", candidate_activation=slope)
    assert layer.cell.output_activation is slope
    layer.build((None, 4, 2))
    assert [w.path.split("/")[-1] for w in layer.trainable_weights].count("alpha") == 1
    model = keras.Sequential([keras.Input((4, 2)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(8, 4, 2))
    model.fit(x, x[:, 0, :1], verbose=0, epochs=2)
    assert np.abs(keras.ops.convert_to_numpy(slope.alpha)).max() > 0
