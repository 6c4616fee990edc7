"""What the tests of diagnostics share: models to look into, the reference over time."""

import helpers
import keras
import numpy as np
import pytest
import reference
from helpers import BATCH, CASES, FEATURES, TIME, UNITS

TENSORFLOW = helpers.BACKEND == "tensorflow"
needs_gradients = pytest.mark.skipif(not TENSORFLOW, reason="gradients are for TensorFlow")


def sequences(rng, batch=BATCH, time=TIME, features=FEATURES):
    return rng.normal(size=(batch, time, features)).astype("float32")


def model_of(layer, *behind, mask=False, loss="mse"):
    """A compiled model around a layer. With `mask`, steps of zeros are masked."""
    masking = [keras.layers.Masking()] if mask else []
    model = keras.Sequential([keras.Input((None, FEATURES)), *masking, layer, *behind])
    model.compile("sgd", loss)
    return model


def dense(rng, units=2):
    layer = keras.layers.Dense(units)
    layer.build((None, UNITS))
    layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    return layer


def followed(case, layer, x, mask=None, clip=None):
    """The reference after its forward pass over `x`, and its hidden states in reading order."""
    cell = CASES[case][1](helpers.weights_of(layer), clip)
    loop = reference.Sequence(cell, go_backwards=layer.go_backwards)
    loop.forward(x.astype("float64"), mask)
    hidden = np.stack([cell.forward(s[0], s[1 : 1 + cell.states])[0][0] for *_, s in loop.saved], 1)
    return loop, hidden
