"""The clip operation itself: its edges, for every dtype."""

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import ops

from keras_gates.gradients import clip_by_norm, clip_by_value, clip_gradient

INF, NAN = np.inf, np.nan
HALF = ["float16", "bfloat16", "float32"]


def array(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def clipped(clip, rows, bound, dtype="float32"):
    return array(clip(ops.cast(ops.convert_to_tensor(np.array(rows, "float32")), dtype), bound))


@pytest.mark.parametrize("dtype", HALF)
def test_value_moves_what_is_outside_and_nothing_else(dtype):
    given = [[-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 7.0]]
    expected = [[-1.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.0]]
    assert np.array_equal(clipped(clip_by_value, given, 1.0, dtype), expected)


@pytest.mark.parametrize("dtype", HALF)
def test_norm_is_per_sample_and_leaves_small_ones_alone(dtype):
    found = clipped(clip_by_norm, [[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], 1.0, dtype)
    np.testing.assert_allclose(found[0], [0.6, 0.8], rtol=1e-2 if dtype != "float32" else 1e-6)
    small = array(ops.cast(ops.convert_to_tensor([[0.3, 0.4]]), dtype))
    assert np.array_equal(found[1:], [small[0], [0.0, 0.0]])


def test_norm_of_random_rows(rng):
    given = rng.normal(size=(50, 7)) * 10 ** rng.uniform(-3, 3, size=(50, 1))
    found = clipped(clip_by_norm, given, 0.5)
    lengths = np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(found, given * np.minimum(1, 0.5 / lengths), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e20, 1e38])
def test_norm_neither_overflows_nor_underflows(size):
    found = clipped(clip_by_norm, [[size, size, -size]], 1.0)
    expected = [size, size, -size] if size < 1 else np.array([1, 1, -1]) / np.sqrt(3)
    np.testing.assert_allclose(found[0], np.array(expected, "float32"), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_infinity_becomes_the_bound(dtype):
    assert np.array_equal(clipped(clip_by_value, [[INF, -INF, 0.5]], 2.0, dtype), [[2, -2, 0.5]])
    assert np.array_equal(clipped(clip_by_norm, [[0.0, -INF, 5.0]], 2.0, dtype), [[0, -2, 0]])
    two = clipped(clip_by_norm, [[INF, -INF, 5.0]], 2.0, "float32")
    np.testing.assert_allclose(two, [[2**0.5, -(2**0.5), 0]], rtol=1e-6)


def test_infinity_stays_in_float16_where_loss_scaling_looks_for_it():
    assert np.array_equal(
        clipped(clip_by_value, [[INF, -INF, 3.0]], 2.0, "float16"), [[INF, -INF, 2.0]]
    )
    assert np.array_equal(
        clipped(clip_by_norm, [[INF, 1.0], [3.0, 4.0]], 5.0, "float16"), [[INF, 1.0], [3.0, 4.0]]
    )


@pytest.mark.parametrize("dtype", HALF)
def test_nan_stays(dtype):
    found = clipped(clip_by_value, [[NAN, 5.0]], 1.0, dtype)
    assert np.isnan(found[0, 0])
    assert found[0, 1] == 1.0
    for row in ([NAN, 5.0], [5.0, NAN], [NAN, 0.1]):
        assert np.isnan(clipped(clip_by_norm, [row, [0.5, 0.5]], 1.0, dtype)[0]).all()
    assert np.isnan(clipped(clip_by_norm, [[NAN, INF]], 1.0, "float32")).any()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="reads a TensorFlow graph")
def test_second_derivatives_go_through():
    import tensorflow as tf

    x = tf.constant([[0.3, 2.0]])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(0.4 * clip_gradient(x, value=1.0) ** 2)
        first = inner.gradient(y, x)
    assert np.allclose(first, [[0.24, 1.0]])
    assert np.allclose(outer.gradient(first, x), [[0.8, 0.0]])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compiles with XLA")
@pytest.mark.parametrize("mode", ["value", "norm"])
def test_edges_are_the_same_under_xla(mode):
    import tensorflow as tf

    rows = [[3.0, 4.0], [INF, 1.0], [NAN, 1.0], [1e38, -1e38], [0.0, 0.0], [0.1, 0.2]]

    def gradient(d):
        x = tf.zeros((6, 2))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = clip_gradient(x, **{mode: 1.5})
        return tape.gradient(y, x, output_gradients=d)

    d = tf.constant(rows)
    np.testing.assert_allclose(tf.function(gradient, jit_compile=True)(d), gradient(d), rtol=1e-6)


def test_a_clipped_gradient_of_zero_can_be_differentiated_again():
    """As a gradient penalty does: 1 / sqrt(0) must not come into it."""
    if BACKEND != "tensorflow":
        pytest.skip("tapes")
    import tensorflow as tf

    gradient = tf.constant([[0.0, 0.0], [3.0, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(gradient)
        found = tf.reduce_sum(clip_by_norm(gradient, 1.0) * [[1.0, 2.0], [1.0, 0.0]])
    np.testing.assert_allclose(
        tape.gradient(found, gradient), [[1.0, 2.0], [0.128, -0.096]], rtol=1e-5
    )
