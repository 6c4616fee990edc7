"""GatedRNN in models: every way of building, training and running that Keras has."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CASES, leave_out_for_time

import keras_gates as kg

FULL = {
    "gate_activation": "hard_sigmoid",
    "candidate_activation": "relu",
    "grad_clip_norm": 1.0,
    "activation_l1": 1e-4,
}


@pytest.fixture
def data(rng):
    return rng.normal(size=(16, 6, 3)).astype("float32"), rng.normal(size=(16, 2)).astype("float32")


def sequential(*layers):
    return keras.Sequential([keras.Input((None, 3), name="x"), *layers, keras.layers.Dense(2)])


def functional():
    inputs = keras.Input((None, 3), name="x")
    hidden, state = kg.GatedRNN(5, return_sequences=True, return_state=True, **FULL)(inputs)
    second = kg.GatedRNN(5, **FULL)(hidden, initial_state=state)
    return keras.Model(inputs, keras.layers.Dense(2)(second))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.rnn = kg.GatedRNN(5, cell="lstm", grad_clip_value=0.5, candidate_l1=1e-3)
        self.head = keras.layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.rnn(x, training=training))


MODELS = {
    "sequential": lambda: sequential(kg.GatedRNN(5, **FULL)),
    "masking": lambda: sequential(keras.layers.Masking(), kg.GatedRNN(5, **FULL)),
    "bidirectional": lambda: sequential(keras.layers.Bidirectional(kg.GatedRNN(5, **FULL))),
    "stacked": lambda: sequential(
        kg.GatedRNN(5, return_sequences=True, **FULL), kg.GatedRNN(4, cell="simple")
    ),
    "stack of cells": lambda: sequential(
        keras.layers.RNN([kg.GRUCell(5, grad_clip_norm=1.0), kg.LSTMCell(4), kg.SimpleRNNCell(3)])
    ),
    "dropout": lambda: sequential(kg.GatedRNN(5, dropout=0.2, recurrent_dropout=0.2)),
    "time distributed": lambda: keras.Sequential(
        [
            keras.Input((6, 3)),
            keras.layers.Reshape((2, 3, 3)),
            keras.layers.TimeDistributed(kg.GatedRNN(5)),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    ),
    "functional": functional,
    "subclassed": Subclassed,
}


@pytest.mark.parametrize("name", MODELS)
def test_fit_lowers_the_loss(name, data):
    leave_out_for_time(name in ("sequential", "stacked", "time distributed", "subclassed"))
    model = MODELS[name]()
    model.compile(keras.optimizers.Adam(0.02), "mse")
    history = model.fit(*data, epochs=8, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < 0.9 * history[0]
    assert model.predict(data[0], verbose=0).shape == (16, 2)


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}], ids=str)
@pytest.mark.parametrize("case", ["gru", "gru_reset_before", "lstm_three_activations", "simple"])
def test_every_way_of_running_trains_alike(case, options, data):
    leave_out_for_time("jit_compile" in options and case != "gru")

    def trained(**options):
        keras.utils.set_random_seed(1)
        model = sequential(
            kg.GatedRNN(5, **CASES[case][0], grad_clip_norm=0.01, activation_l1=0.01)
        )
        model.compile("sgd", "mse", **options)
        model.fit(*data, epochs=2, batch_size=8, shuffle=False, verbose=0)
        return model.get_weights()

    for given, expected in zip(trained(**options), trained(jit_compile=False), strict=True):
        np.testing.assert_allclose(given, expected, atol=2e-6)


def test_train_on_batch_and_a_hand_written_loop_agree(data):
    def model():
        keras.utils.set_random_seed(1)
        return sequential(kg.GatedRNN(5, grad_clip_norm=0.01, activation_l1=0.01))

    first = model()
    first.compile(keras.optimizers.SGD(0.1), "mse")
    first.train_on_batch(*data)

    for training in (True, False):  # clipping does not depend on the flag
        second = model()
        x, y = map(tf.constant, data)
        with tf.GradientTape() as tape:
            loss = keras.losses.mean_squared_error(y, second(x, training=training))
            loss = tf.reduce_mean(loss) + sum(second.losses)
        gradients = tape.gradient(loss, second.trainable_weights)
        keras.optimizers.SGD(0.1).apply(gradients, second.trainable_weights)
        for given, expected in zip(second.get_weights(), first.get_weights(), strict=True):
            np.testing.assert_allclose(given, expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_clipping_holds_for_a_tape_around_a_graph_traced_without_one(training, data):
    layer = kg.GatedRNN(5, grad_clip_norm=1e-3)
    traced = tf.function(lambda x: layer(x, training=training))
    x = tf.constant(data[0])
    traced(x)
    found = []
    for call in (traced, lambda x: layer(x, training=training)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(x))
        found.append(tape.gradient(loss, layer.trainable_weights))
    for given, expected in zip(*found, strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy, jit_compile, data):
    keras.config.set_dtype_policy(policy)
    clip = {"grad_clip_norm": 1.0} if policy == "mixed_bfloat16" else {}
    model = sequential(kg.GatedRNN(5, activation_l1=1e-3, candidate_l1=1e-3, **clip))
    layer = model.layers[0]
    assert layer.compute_dtype == policy.removeprefix("mixed_")
    assert {w.dtype for w in layer.weights} == {"float32"}
    model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit_compile)
    history = model.fit(*data, epochs=6, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_penalty_of_a_long_sequence_in_bfloat16_keeps_its_digits(rng):
    """A running sum in bfloat16 would stop growing at 256 times its terms."""
    arguments = {"activation_l1": 1.0, "return_sequences": True}
    layer = kg.GatedRNN(4, dtype="mixed_bfloat16", **arguments)
    outputs = layer(rng.normal(size=(2, 600, 3)))
    expected = np.abs(np.array(outputs, "float32")).sum(-1).mean()
    assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-3)


def test_stateful_batches_continue_until_reset(rng):
    x = rng.normal(size=(2, 8, 3)).astype("float32")
    model = keras.Sequential(
        [keras.Input(batch_shape=(2, 4, 3)), kg.GatedRNN(5, stateful=True, return_sequences=True)]
    )
    whole = kg.GatedRNN(5, return_sequences=True)
    whole.build(x.shape)
    whole.set_weights(model.get_weights()[:3])
    expected = np.array(whole(x))
    for _ in range(2):
        for half in (slice(0, 4), slice(4, 8)):
            found = model.predict(x[:, half], verbose=0)
            np.testing.assert_allclose(found, expected[:, half], atol=1e-6)
        model.layers[0].reset_state()


def test_the_mask_passes_on_when_sequences_are_returned():
    x = keras.layers.Masking()(np.array([[[1.0], [2.0], [0.0]]], "float32"))
    layer = kg.GatedRNN(2, return_sequences=True)
    assert layer.supports_masking
    assert np.array_equal(layer(x)._keras_mask, [[True, True, False]])
    assert getattr(kg.GatedRNN(2)(x), "_keras_mask", None) is None


def test_one_penalty_per_layer_and_activity_regularizer_keeps_keras_meaning(rng):
    x = rng.normal(size=(4, 6, 3)).astype("float32")
    layer = kg.GatedRNN(5, activation_l1=0.1, candidate_l1=0.1, return_state=True)
    for _ in range(2):  # not one more per call
        layer(x)
    assert len(layer.losses) == 2
    theirs = keras.layers.GRU(5, activity_regularizer="l2", return_sequences=True)
    theirs(x)
    ours = kg.GatedRNN(5, activity_regularizer="l2", return_sequences=True)
    ours.build(x.shape)
    ours.set_weights(theirs.get_weights())
    ours(x)
    np.testing.assert_allclose(ours.losses[0], theirs.losses[0], rtol=1e-6)


@pytest.mark.parametrize("argument", ["activation_l1", "candidate_l1"])
@pytest.mark.parametrize("around", [lambda layer: layer, keras.layers.Bidirectional])
@pytest.mark.parametrize("axes", [(3,), (2, 3)], ids=["time distributed", "nested"])
def test_a_penalty_is_a_mean_over_the_steps_of_time_distributed_too(axes, around, argument, rng):
    x = rng.normal(size=(2, *axes, 5, 4)).astype("float32")
    alone = around(kg.GatedRNN(3, **{argument: 0.5}))
    alone(x.reshape(-1, 5, 4))
    wrapped = inside = around(kg.GatedRNN(3, **{argument: 0.5}))
    for _ in axes:
        wrapped = keras.layers.TimeDistributed(wrapped)
    wrapped.build(x.shape)
    inside.set_weights(alone.get_weights())
    wrapped(x)
    assert float(sum(wrapped.losses)) == pytest.approx(float(sum(alone.losses)), rel=1e-5)
    model = keras.Sequential([keras.Input(x.shape[1:]), wrapped])
    model.compile("sgd", lambda y, prediction: 0.0 * keras.ops.sum(prediction))
    loss = model.evaluate(x, np.zeros(len(x)), verbose=0)
    assert loss == pytest.approx(float(sum(alone.losses)), rel=1e-5)


def test_a_layer_that_is_used_twice_is_penalized_for_both(rng):
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    layer, inputs = kg.GatedRNN(3, return_sequences=True, activation_l1=0.5), keras.Input((5, 3))
    model = keras.Model(inputs, layer(layer(inputs)))
    first = model(x) * 0 + layer(x)
    assert len(model.losses) > 0
    model(x)
    expected = 0.5 * np.mean(np.sum(np.abs(first), -1)) + 0.5 * np.mean(
        np.sum(np.abs(model(x)), -1)
    )
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


def test_summary_counts_parameters_and_names_the_layer(capsys):
    sequential(kg.GatedRNN(5, **FULL)).summary()
    printed = capsys.readouterr().out
    assert "gated_rnn (GatedRNN)" in printed
    assert "150" in printed


def test_regularizers_constraints_and_initializers_reach_the_weights():
    layer = kg.GatedRNN(
        4,
        kernel_initializer="ones",
        recurrent_initializer=keras.initializers.Constant(0.5),
        bias_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.1),
        recurrent_regularizer="l1",
        bias_regularizer="l2",
        kernel_constraint="non_neg",
        recurrent_constraint=keras.constraints.MaxNorm(1.0),
        bias_constraint="unit_norm",
    )
    layer.build((None, None, 3))
    kernel, recurrent, bias = layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias
    assert [np.unique(np.array(w)).tolist() for w in (kernel, recurrent, bias)] == [[1], [0.5], [1]]
    expected = [0.1 * 3 * 12, 0.01 * 0.5 * 4 * 12, 0.01 * 24]
    np.testing.assert_allclose(layer.losses, expected, rtol=1e-6)
    assert isinstance(kernel.constraint, keras.constraints.NonNeg)
    assert isinstance(recurrent.constraint, keras.constraints.MaxNorm)
    assert isinstance(bias.constraint, keras.constraints.UnitNorm)


@pytest.mark.parametrize("unit_forget_bias", [True, False])
def test_lstm_forget_bias(unit_forget_bias):
    ours = kg.LSTMCell(3, unit_forget_bias=unit_forget_bias)
    theirs = keras.layers.LSTMCell(3, unit_forget_bias=unit_forget_bias)
    for cell in (ours, theirs):
        cell.build((None, 2))
    assert np.array_equal(ours.bias, theirs.bias)


def test_a_new_layer_has_the_initial_weights_of_keras():
    # Not SimpleRNN: there Keras draws the seed for dropout before those of the initializers.
    for name, theirs_class in (("gru", "GRU"), ("lstm", "LSTM")):
        weights = []
        for make in (getattr(keras.layers, theirs_class), lambda u, n=name: kg.GatedRNN(u, cell=n)):
            keras.utils.set_random_seed(5)
            layer = make(4)
            layer.build((None, None, 3))
            weights.append(layer.get_weights())
        for ours, theirs in zip(*weights, strict=True):
            assert np.array_equal(ours, theirs)


def test_mirrored_strategy(data):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = sequential(kg.GatedRNN(5, **FULL))
        model.compile("adam", "mse")
    assert np.isfinite(model.fit(*data, verbose=0).history["loss"]).all()


def test_autograph_leaves_the_code_of_the_layer_alone(caplog, monkeypatch, rng):
    def look(layer, sequences, states):  # a new one, since AutoGraph complains of each but once
        assert (shape := sequences.shape)[-1] == 4, shape

    monkeypatch.setattr("keras_gates.inputs.check_initial_state", look)
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    layer = kg.GatedRNN(8)
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    found = tf.function(lambda x: layer(x))(x)
    assert not caplog.records
    np.testing.assert_allclose(found, layer(x), atol=1e-6)
