"""Zoneout: against float64 NumPy, by how many units are kept, and where users meet it."""

import keras
import numpy as np
import pytest
import reference
from helpers import BACKEND, BATCH, DTYPE, FEATURES, MASK, TIME, UNITS, assert_close, built
from keras import ops

import keras_gates as kg
from keras_gates import checks

SHARES = {
    "gru": (0.3, [0.3]),
    "lstm": ({"hidden": 0.2, "cell": 0.5}, [0.2, 0.5]),
}
CELLS = {"gru": reference.GRU, "lstm": reference.LSTM}


def step_of(name, layer):
    """The equations of the cell, in NumPy."""
    weights = [np.asarray(w, "float64") for w in layer.get_weights()[:3]]
    cell = CELLS[name](weights)
    return lambda x, states: cell.forward(x, states)[0]


@pytest.mark.parametrize("backprop", ["auto", "autodiff"])
@pytest.mark.parametrize("name", SHARES)
def test_inference_is_the_expected_state(name, backprop, rng):
    zoneout, shares = SHARES[name]
    layer = built(
        rng, cell=name, zoneout=zoneout, backprop=backprop, return_sequences=True,
        return_state=True,
    )  # fmt: skip
    step = step_of(name, layer)
    x = rng.normal(size=(BATCH, TIME, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in shares]
    given = [ops.cast(v, DTYPE) for v in (x, *states)]
    hidden, *last = layer(given[0], initial_state=given[1:], mask=MASK)
    for t in range(TIME):
        new = [
            p * s + (1 - p) * n
            for p, s, n in zip(shares, states, step(x[:, t], states), strict=True)
        ]
        valid = MASK[:, t, None]
        states = [np.where(valid, n, s) for n, s in zip(new, states, strict=True)]
        assert_close(ops.where(valid, hidden[:, t], 0), np.where(valid, states[0], 0))
    for found, expected in zip(last, states, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("backprop", ["auto", "autodiff"])
@pytest.mark.parametrize("name", SHARES)
def test_training_keeps_units_and_computes_the_others(name, backprop, rng):
    """By single steps, between which all states are seen."""
    zoneout, shares = SHARES[name]
    layer = built(rng, units=40, cell=name, zoneout=zoneout, backprop=backprop, return_state=True)
    step, batch = step_of(name, layer), 50
    states = [rng.normal(size=(batch, 40)) for _ in shares]
    counts, steps = [[] for _ in shares], 12
    for _ in range(steps):
        x = rng.normal(size=(batch, 1, FEATURES))
        given = [ops.cast(v, DTYPE) for v in (x, *states)]
        _, *after = layer(given[0], initial_state=given[1:], training=True)
        states = [ops.convert_to_numpy(s) for s in given[1:]]
        after = [ops.convert_to_numpy(s) for s in after]
        for before, found, new, count in zip(
            states, after, step(x[:, 0], states), counts, strict=True
        ):
            kept = found == before
            assert_close(found, np.where(kept, before, new))
            count.append(kept)
        states = after
    for p, count in zip(shares, counts, strict=True):
        assert_drawn_independently(np.stack(count), p)
    if len(shares) == 2:  # states are drawn apart from each other
        both = np.mean(np.stack(counts[0]) & np.stack(counts[1]))
        assert abs(both - shares[0] * shares[1]) < 4 * np.sqrt(0.1 * 0.9 / np.size(counts[0]))


def assert_drawn_independently(kept, p):
    """A share p of booleans (time, batch, units) within 4 standard deviations, on each axis too."""
    n, variance = kept.size, p * (1 - p)
    assert abs(kept.mean() - p) < 4 * np.sqrt(variance / n)
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        means = kept.mean(axis=others)
        assert abs(means - p).max() < 5 * np.sqrt(variance * len(means) / n)
        pairs = np.moveaxis(kept, axis, 0)
        assert abs((pairs[1:] & pairs[:-1]).mean() - p * p) < 5 * np.sqrt(variance / n)


@pytest.mark.parametrize("backprop", ["auto", "autodiff"])
def test_every_step_of_a_sequence_draws_anew_and_masked_ones_carry_the_state(backprop, rng):
    layer = built(rng, units=30, cell="gru", zoneout=0.25, backprop=backprop, return_sequences=True)
    x = rng.normal(size=(20, 40, FEATURES))
    hidden = ops.convert_to_numpy(layer(ops.cast(x, DTYPE), training=True))
    kept = hidden[:, 1:] == hidden[:, :-1]
    assert_drawn_independently(np.swapaxes(kept, 0, 1), 0.25)
    mask = rng.random((20, 40)) > 0.3
    mask[:, 0] = True
    hidden = ops.convert_to_numpy(layer(ops.cast(x, DTYPE), mask=mask, training=True))
    kept = hidden[:, 1:] == hidden[:, :-1]
    assert kept[~mask[:, 1:]].all()
    assert abs(kept[mask[:, 1:]].mean() - 0.25) < 0.02


@pytest.mark.skipif(BACKEND == "jax", reason="JAX keeps the state of the seed outside the layer")
@pytest.mark.parametrize("name", SHARES)
def test_gradients_of_training_are_those_of_what_was_drawn(name, rng):
    """Finite differences along random directions, the units drawn from the same seed each time."""
    if DTYPE != "float64":
        pytest.skip("finite differences in float64")
    layer = built(rng, cell=name, zoneout=SHARES[name][0], seed=4, return_sequences=True)
    weighting = rng.normal(size=(BATCH, TIME, UNITS))
    given = [rng.normal(size=(BATCH, TIME, FEATURES))]
    given += [rng.normal(size=(BATCH, UNITS)) for _ in layer.cell.state_names]
    start = ops.convert_to_numpy(layer.cell.seed_generator.state)

    class Training:
        """The layer, in training, from the same seed."""

        built, trainable_weights, losses = True, layer.trainable_weights, []

        def __call__(self, x, **options):
            layer.cell.seed_generator.state.assign(start)
            return layer(x, training=True, **options)

    import tensorflow as tf

    def loss(given, weights):
        for variable, value in zip(layer.trainable_weights, weights, strict=True):
            variable.assign(value)
        found = Training()(tf.constant(given[0]), initial_state=[*map(tf.constant, given[1:])])
        return float(ops.sum(found * weighting))

    weights = layer.get_weights()[: len(layer.trainable_weights)]
    tensors = [tf.constant(v) for v in given]
    variables = [w.value for w in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        found = Training()(tensors[0], initial_state=tensors[1:])
        value = tf.reduce_sum(found * weighting)
    gradients = [g.numpy() for g in tape.gradient(value, [*tensors, *variables])]
    at, epsilon = [*given, *weights], 1e-6
    for _ in range(3):
        way = [rng.normal(size=v.shape) for v in at]
        ends = [
            loss(moved[: len(given)], moved[len(given) :])
            for moved in (
                [v + s * epsilon * d for v, d in zip(at, way, strict=True)] for s in (1, -1)
            )
        ]
        slope = sum((g * d).sum() for g, d in zip(gradients, way, strict=True))
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * epsilon), slope, rtol=1e-6)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_contracts_hold_with_it(name):
    """Of inference, from the equations as they are traced: gradients, masks, files."""
    cell = {"gru": kg.GRUCell, "lstm": kg.LSTMCell}[name]
    for check in ("config_round_trip", "masks", "states", "finite_differences", "clipping"):
        checks.CHECKS[check](cell, {"zoneout": SHARES[name][0]})


def test_training_is_seeded_and_fits(rng):
    x = rng.normal(size=(32, 12, FEATURES)).astype("float32")
    losses = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((None, FEATURES)),
                keras.layers.Masking(),
                keras.layers.Bidirectional(kg.GatedRNN(6, zoneout=0.2, return_sequences=True)),
                kg.GatedRNN(6, cell="lstm", zoneout={"cell": 0.3}),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.Adam(0.02), "mse")
        losses.append(model.fit(x, x[:, -1, :1], epochs=6, verbose=0).history["loss"])
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.9 * losses[0][0]


def test_what_it_does_elsewhere(tmp_path, rng):
    """Verdicts, equations, files, `from_keras`, and sizes without meaning."""
    verdict = kg.check_activations("gru", zoneout=0.3)
    assert verdict.level == "sound"
    np.testing.assert_allclose(verdict.carry["hidden"], (0.3, 1.0), atol=1e-6)
    text = kg.GatedRNN(4, cell="lstm", zoneout={"cell": 0.25}).explain()
    assert "c' = 0.25 * c + 0.75 * (f * c + i * g)" in text
    assert "h' = o * tanh(f * c + i * g)" in text
    model = keras.Sequential([keras.Input((None, FEATURES)), keras.layers.LSTM(4)])
    copy = kg.from_keras(model, zoneout={"hidden": 0.1})
    assert copy.layers[0].zoneout == {"hidden": 0.1}
    copy.save(tmp_path / "model.keras")
    x = rng.normal(size=(2, 5, FEATURES)).astype("float32")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].cell.get_config()["zoneout"] == {"hidden": 0.1}
    np.testing.assert_array_equal(again.predict(x, verbose=0), copy.predict(x, verbose=0))
    for nothing in (0, {}, {"hidden": 0.0}):
        layer = kg.GatedRNN(4, zoneout=nothing, backprop="autodiff")
        assert "h' = z * h + (1 - z) * n" in layer.explain()
        assert_close(layer(x, training=True), layer(x), 1e-6)


def test_a_cell_alone_draws_by_itself(rng):
    x = rng.normal(size=(8, 30, FEATURES)).astype("float32")
    layer = keras.layers.RNN(kg.GRUCell(16, zoneout=0.4), return_sequences=True)
    if BACKEND == "jax":
        with pytest.raises(ValueError, match=r"only keras_gates.GatedRNN does.*zoneout=0.4"):
            layer(x, training=True)
        return
    hidden = ops.convert_to_numpy(layer(x, training=True))
    assert_drawn_independently(np.swapaxes(hidden[:, 1:] == hidden[:, :-1], 0, 1), 0.4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports of TensorFlow")
@pytest.mark.parametrize(
    "format", ["onnx", "litert", "openvino", pytest.param("saved_model", marks=pytest.mark.slow)]
)
def test_exports(format, tmp_path):
    """`export` itself compares what it has written with the model."""
    layers = [
        kg.GatedRNN(UNITS, zoneout=0.3, return_sequences=True),
        kg.GatedRNN(UNITS, cell="lstm", zoneout={"hidden": 0.2, "cell": 0.5}),
    ]
    model = keras.Sequential(
        [keras.Input((None, FEATURES), name="x"), *layers, keras.layers.Dense(2)]
    )
    suffix = {"onnx": ".onnx", "litert": ".tflite", "openvino": ".xml"}.get(format, "")
    report = kg.export(
        model, tmp_path / f"model{suffix}", format=format, streaming=format == "saved_model"
    )
    assert report is not None
