"""from_keras: the same function of the input, in one line, for every way of nesting."""

import keras
import numpy as np
import pytest

import keras_gates as kg


def functional():
    inputs = keras.Input((None, 3))
    shared = keras.layers.GRU(4, return_sequences=True)
    a = shared(inputs)
    b = shared(keras.layers.Dense(3)(a))
    nested = keras.Sequential([keras.Input((None, 4)), keras.layers.LSTM(2)], name="nested")
    return keras.Model(inputs, keras.layers.Add()([nested(a), nested(b)]))


MODELS = {
    "sequential": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Masking(),
            keras.layers.GRU(4, return_sequences=True, reset_after=False, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid"),
            keras.layers.SimpleRNN(4, activation="relu"),
            keras.layers.Dense(2),
        ]
    ),
    "bidirectional": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Bidirectional(keras.layers.GRU(4), merge_mode="sum"),
            keras.layers.Dense(2),
        ]
    ),
    "two directions": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Bidirectional(
                keras.layers.GRU(4), backward_layer=keras.layers.LSTM(4, go_backwards=True)
            ),
        ]
    ),
    "stack of cells": lambda: keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.RNN(
                [keras.layers.GRUCell(4), keras.layers.LSTMCell(3)], return_sequences=True
            ),
            keras.layers.RNN(keras.layers.SimpleRNNCell(4)),
        ]
    ),
    "time distributed": lambda: keras.Sequential(
        [
            keras.Input((2, 5, 3)),
            keras.layers.TimeDistributed(keras.layers.GRU(4)),
            keras.layers.Flatten(),
        ]
    ),
    "functional": functional,
}


def recurrent(model):
    kinds = (keras.layers.GRU, keras.layers.LSTM, keras.layers.SimpleRNN)
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]


@pytest.mark.parametrize("name", MODELS)
def test_the_copy_computes_the_same(name, rng):
    model = MODELS[name]()
    model.set_weights([rng.uniform(0.1, 1.0, size=w.shape) for w in model.get_weights()])
    before = [w.copy() for w in model.get_weights()]
    copy = kg.from_keras(model)
    assert not recurrent(copy)
    assert any(isinstance(layer, kg.GatedCell) for layer in copy._flatten_layers())
    x = rng.normal(size=(4, 2, 5, 3) if name == "time distributed" else (4, 5, 3))
    if name == "sequential":
        x[:, 3:] = 0
    np.testing.assert_allclose(
        copy.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "SimpleRNN"])
def test_a_layer_and_its_options(kind, rng):
    layer = getattr(keras.layers, kind)(
        4,
        return_sequences=True,
        go_backwards=True,
        dropout=0.1,
        recurrent_dropout=0.2,
        kernel_regularizer="l2",
        seed=3,
        name="mine",
        trainable=False,
    )
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    expected = layer(x)
    copy = kg.from_keras(layer)
    np.testing.assert_allclose(copy(x), expected, atol=1e-6)
    assert (copy.name, copy.trainable) == ("mine", False)
    ours, theirs = copy.cell.get_config(), layer.cell.get_config()
    for option in ("dropout", "recurrent_dropout", "seed", "units", "use_bias"):
        assert ours[option] == theirs[option]
    assert isinstance(copy.cell.kernel_regularizer, keras.regularizers.L2)


def test_changes_apply_to_every_layer(rng):
    model = MODELS["sequential"]()
    copy = kg.from_keras(model, grad_clip_norm=0.5, activation_l1=1e-3, candidate_activation="elu")
    layers = [layer for layer in copy.layers if isinstance(layer, kg.GatedRNN)]
    assert len(layers) == 3
    for layer in layers:
        assert layer.cell.grad_clip_norm == 0.5
        assert layer.cell.candidate_activation is keras.activations.elu
    copy.compile("adam", "mse")
    copy.fit(rng.normal(size=(4, 5, 3)), np.zeros((4, 2)), verbose=0)
    assert len(copy.losses) == 3


def test_an_activation_with_weights_can_be_put_in():
    model = MODELS["sequential"]()
    copy = kg.from_keras(model.layers[1], candidate_activation=keras.layers.PReLU())
    assert len(copy.weights) == 3
    for ours, theirs in zip(copy.get_weights(), model.layers[1].get_weights(), strict=False):
        assert np.array_equal(ours, theirs)


def test_an_unbuilt_layer_stays_unbuilt():
    copy = kg.from_keras(keras.layers.GRU(4), activation_l1=0.1)
    assert not copy.built
    assert copy.cell.activation_l1 == 0.1


def test_an_unsavable_activation_is_carried_over(rng):
    def bent(x):
        return 0.3 * x

    layer = keras.layers.GRU(4, activation=bent)
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    expected = layer(x)
    with pytest.warns(UserWarning, match="works for training"):
        copy = kg.from_keras(layer)
    np.testing.assert_allclose(copy(x), expected, atol=1e-6)
