"""One model called from several threads gives what it gives in one."""

import concurrent.futures
import threading

import keras
import numpy as np
import pytest
from helpers import MGUCell
from keras import ops

import keras_gates as kg

CELLS = {
    "gru": {"cell": "gru", "reset_after": False, "candidate_l1": 0.1},
    "lstm": {"cell": "lstm", "grad_clip_norm": 1.0},
    "simple": {"cell": "simple", "activation_l1": 0.1},
    "of one's own": {"cell": MGUCell, "grad_clip_value": 0.5},
}


def in_threads(*functions):
    """What each of the functions returns, called side by side."""
    start = threading.Barrier(len(functions))

    def run(function):
        start.wait()
        return function()

    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


def model_of(**arguments):
    return keras.Sequential(
        [
            keras.Input((None, 3), name="x"),
            kg.GatedRNN(5, return_sequences=True, **arguments),
            kg.GatedRNN(4, **arguments),
            keras.layers.Dense(2),
        ]
    )


@pytest.mark.parametrize("name", CELLS)
def test_four_threads_call_one_model_eagerly(name, rng):
    model = model_of(**CELLS[name])
    # Different sizes: what one call left on a cell would not fit another.
    inputs = [rng.normal(size=(2 + i, 20 + i, 3)).astype("float32") for i in range(4)]
    expected = [ops.convert_to_numpy(model(x)) for x in inputs]

    def calls(index):
        return lambda: [ops.convert_to_numpy(model(inputs[index])) for _ in range(8)]

    for given, wanted in zip(in_threads(*map(calls, range(4))), expected, strict=True):
        for each in given:
            np.testing.assert_array_equal(each, wanted)


def test_gradients_in_threads(rng):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tapes are TensorFlow's")
    model = model_of(cell="gru", reset_after=False, candidate_l1=0.1, grad_clip_norm=0.1)
    inputs = [rng.normal(size=(2 + i, 6 + i, 3)).astype("float32") for i in range(4)]

    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        return [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]

    expected = [gradients(x) for x in inputs]
    for _ in range(3):
        given = in_threads(*[lambda x=x: gradients(x) for x in inputs])
        for of_one, wanted in zip(given, expected, strict=True):
            for one, other in zip(of_one, wanted, strict=True):
                np.testing.assert_allclose(one, other, 1e-6, 1e-6)


def test_dropout_masks_of_one_thread_do_not_reach_another(rng):
    """Batches of different sizes: a mask of another call would not fit."""
    model = model_of(cell="gru", reset_after=False, dropout=0.3, recurrent_dropout=0.3)

    def calls(batch):
        x = rng.normal(size=(batch, 7, 3)).astype("float32")
        return lambda: [model(x, training=True).shape for _ in range(8)]

    for batch, shapes in zip((2, 3, 5, 8), in_threads(*map(calls, (2, 3, 5, 8))), strict=True):
        assert shapes == [(batch, 2)] * 8


def test_predict_beside_fit(rng):
    trained, asked = model_of(cell="lstm", recurrent_dropout=0.2), None
    trained.compile("sgd", "mse")
    layer = trained.layers[0]
    x = rng.normal(size=(32, 10, 3)).astype("float32")
    y = rng.normal(size=(32, 2)).astype("float32")
    inputs = keras.Input((None, 3), name="x")
    asked = keras.Model(inputs, layer(inputs))  # the same layer, in a model of its own
    asked.predict_on_batch(x)
    fitted, answers = in_threads(
        lambda: trained.fit(x, y, batch_size=8, epochs=4, verbose=0).history["loss"],
        lambda: [asked.predict(x[: 3 + i], verbose=0).shape for i in range(8)],
    )
    assert np.isfinite(fitted).all()
    assert answers == [(3 + i, 10, 5) for i in range(8)]


def test_functions_traced_in_threads_equal_each_other(rng):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's functions")
    model = model_of(cell="lstm", candidate_activation="relu")
    x = rng.normal(size=(3, 5, 3)).astype("float32")
    expected = model(x).numpy()
    for _ in range(3):
        functions = [tf.function(lambda x: model(x)) for _ in range(4)]
        for given in in_threads(*[lambda f=f: f(x).numpy() for f in functions]):
            np.testing.assert_allclose(given, expected, 1e-5, 1e-5)


def test_equations_outside_a_time_step_say_so():
    cell = kg.GRUCell(3, name="alone")
    cell.build((None, 2))
    with pytest.raises(RuntimeError, match="no time step of 'alone' is being computed here"):
        cell.candidate(np.zeros((1, 3), "float32"))


def test_a_call_that_fails_leaves_no_dropout_mask():
    class Failing(kg.SimpleRNNCell):
        fails = True

        def update(self, x, u, states):
            if self.fails:
                raise KeyError("once")
            return super().update(x, u, states)

    cell = Failing(3, dropout=0.5, seed=1)
    layer = kg.GatedRNN(cell=cell)
    layer.build((None, None, 2))
    with pytest.raises(KeyError, match="once"):
        layer(np.zeros((2, 4, 2), "float32"), training=True)
    cell.fails = False
    assert layer(np.zeros((5, 4, 2), "float32"), training=True).shape == (5, 3)
