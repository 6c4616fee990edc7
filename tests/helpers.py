"""What several test files share."""

import os
import pathlib
import subprocess
import sys
import textwrap
import zipfile

import keras
import numpy as np
import pytest
import reference
from keras import ops

import keras_gates as kg

GOLDEN = pathlib.Path(__file__).parent / "golden"
BACKEND = keras.backend.backend()
# `make test-all` runs what the usual run leaves out for time.
ALL = bool(os.environ.get("ALL_TESTS"))
# Keras computes in float64 on TensorFlow alone.
DTYPE = "float64" if BACKEND == "tensorflow" else "float32"
TOLERANCE = 1e-10 if BACKEND == "tensorflow" else 1e-4
# What a masked step at the very start of a sequence outputs, in Keras' own layers.
FIRST_OUTPUT = "state" if BACKEND == "jax" else "zero"


@keras.saving.register_keras_serializable(package="helpers")
class MGUCell(kg.GatedCell):
    """A cell of one's own.

    f  = σ(x W_f + b_f + h U_f)
    n  = φ(x W_n + b_n + (f * h) U_n)
    h' = (1 - f) * h + f * n
    """

    blocks = ("forget", "candidate")
    projected_blocks = ("forget",)

    def update(self, x, u, states):
        (h,) = states
        f = self.gate("forget", x.forget + u.forget)
        n = self.candidate(x.candidate + self.recurrent("candidate", f * h))
        return ((1 - f) * h + f * n,)


def drawn_cell(rng):
    """The class of a cell whose equations are drawn at random from the operations of programs."""
    unary = [
        ops.tanh, ops.sigmoid, ops.softplus, ops.softsign, ops.square, ops.abs, ops.relu,
        lambda v: ops.exp(-ops.square(v)), lambda v: ops.log(1 + ops.square(v)), ops.sin,
        lambda v: v - ops.mean(v, axis=-1, keepdims=True), ops.softmax,
        lambda v: v / ops.sqrt(1 + ops.sum(ops.square(v), axis=-1, keepdims=True)),
        lambda v: ops.max(v, axis=-1, keepdims=True) - v, lambda v: ops.clip(v, -0.7, 0.8),
    ]  # fmt: skip
    binary = [
        ops.add, ops.subtract, ops.multiply, ops.maximum, ops.minimum,
        lambda a, b: a / (2 + ops.tanh(b)), lambda a, b: ops.where(a > b, a, 0.5 * b),
    ]  # fmt: skip
    plan = [(int(rng.integers(99)), int(rng.integers(99)), int(rng.integers(99))) for _ in range(9)]

    class Drawn(kg.GatedCell):
        blocks = ("gate", "candidate")
        state_names = ("hidden", "more")

        def build(self, input_shape):
            super().build(input_shape)
            self.extra = self.add_weight(shape=(self.units,), name="extra")

        def update(self, x, u, states):
            pool = [*states, self.gate("gate", x.gate + u.gate), self.extra * x.candidate]
            pool.append(self.candidate(x.candidate + u.candidate))
            for kind, first, second in plan:
                a, b = pool[first % len(pool)], pool[second % len(pool)]
                which = kind % (len(unary) + len(binary))
                if which < len(unary):
                    pool.append(unary[which](a))
                else:
                    pool.append(binary[which - len(unary)](a, b))
            return sum(pool[1:], pool[0]) / 4, pool[-1] * pool[-2]

    return Drawn


# One entry per cell and variant: arguments of GatedRNN, and of its reference.
CASES = {
    "gru": (
        {"cell": "gru"},
        lambda w, clip: reference.GRU(w, clip=clip),
    ),
    "gru_reset_before": (
        {"cell": "gru", "reset_after": False, "candidate_activation": "softsign"},
        lambda w, clip: reference.GRU(w, candidate="softsign", reset_after=False, clip=clip),
    ),
    "gru_per_gate": (
        {
            "cell": "gru",
            "gate_activation": {"update": "hard_sigmoid", "reset": "tanh"},
            "candidate_activation": "relu",
        },
        lambda w, clip: reference.GRU(
            w, gate={"z": "hard_sigmoid", "r": "tanh"}, candidate="relu", clip=clip
        ),
    ),
    "lstm": (
        {"cell": "lstm"},
        lambda w, clip: reference.LSTM(w, clip=clip),
    ),
    "lstm_three_activations": (
        {
            "cell": "lstm",
            "gate_activation": {"forget": "hard_sigmoid", "output": "softsign"},
            "candidate_activation": "relu",
            "output_activation": "tanh",
        },
        lambda w, clip: reference.LSTM(
            w,
            gate={"i": "sigmoid", "f": "hard_sigmoid", "o": "softsign"},
            candidate="relu",
            output="tanh",
            clip=clip,
        ),
    ),
    "simple": (
        {"cell": "simple"},
        lambda w, clip: reference.Simple(w, clip=clip),
    ),
    "simple_relu": (
        {"cell": "simple", "candidate_activation": "relu"},
        lambda w, clip: reference.Simple(w, candidate="relu", clip=clip),
    ),
}

BATCH, TIME, FEATURES, UNITS = 6, 9, 3, 5
# Right, left and interior padding, all valid, all masked, one step valid.
MASK = np.array(
    [
        [digit == "1" for digit in row]
        for row in ("111110000", "001111111", "101100101", "111111111", "000000000", "000010000")
    ]
)


def built(rng, time=None, batch=None, units=UNITS, scale=0.7, dtype=DTYPE, **arguments):
    """A GatedRNN with random weights, biases too."""
    layer = kg.GatedRNN(units, dtype=dtype, **arguments)
    layer.build((batch, time, FEATURES))
    layer.set_weights([scale * rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def weights_of(layer):
    return [np.asarray(w, "float64") for w in layer.get_weights()[:3]]


def assert_close(given, expected, tolerance=TOLERANCE):
    given = keras.ops.convert_to_numpy(given)
    expected = keras.ops.convert_to_numpy(expected)
    assert given.shape == expected.shape
    np.testing.assert_allclose(given, expected, rtol=tolerance, atol=tolerance)


def every_other(backprop, *choices):
    """Leaves out for time one of two ways to run a case, the one or the other by turns.

    Each choice is (value, values), the one that the case has among all.
    """
    place = sum([*values].index(value) for value, values in choices)
    leave_out_for_time((backprop == "autodiff") == place % 2)


def leave_out_for_time(condition):
    if condition and not ALL:
        pytest.skip("left out for time; make test-all runs it")


def run_python(code, *arguments, without_package=False, timeout=300):
    """Runs `code` in a new process; with `without_package`, one that cannot import keras_gates."""
    code = textwrap.dedent(code)
    if without_package:
        code = "import sys\nsys.modules['keras_gates'] = None\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def golden_files(format):
    """The exported files of old releases in a format; see tests/golden/make_exported.py."""
    found = sorted(GOLDEN.glob(f"release_*_{format}.zip"))
    assert found
    return found


def unpacked(path, folder):
    """The arrays of a golden file: its input, frames, and what the model gave, scores. The file is
    in `folder`, under the name "model"."""
    with zipfile.ZipFile(path) as packed:
        packed.extractall(folder)
    with np.load(folder / "expected.npz") as arrays:
        return arrays["frames"], arrays["scores"]
