"""Activations beside Keras' own. Each can be given by its name, as `gate_activation="tanh_gate"`.

A gate takes values in [0, 1]; a candidate should be able to move the state both ways.
"""

from typing import Any

import keras
from keras import ops

_registered = keras.saving.register_keras_serializable(package="keras_gates")


@_registered
def tanh_gate(x: Any) -> Any:
    """(tanh(x) + 1) / 2, a gate made of tanh.

    Range (0, 1), slope at most 1/2, at 0. Equal to sigmoid(2 x): twice as steep as sigmoid. Bare
    tanh is none: below 0 it turns the sign of the state.

    >>> keras_gates.activations.tanh_gate(keras.ops.zeros(1))
    <tf.Tensor: shape=(1,), dtype=float32, numpy=array([0.5], dtype=float32)>
    """
    return (ops.tanh(x) + 1) / 2


@_registered
def softsign_gate(x: Any) -> Any:
    """(softsign(x) + 1) / 2 = (x / (1 + |x|) + 1) / 2, a gate with slow tails.

    Range (0, 1), slope at most 1/2, at 0. Its slope falls as 1 / x² where that of sigmoid falls as
    exp(-|x|), so that a saturated gate can still learn.

    Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", 2010 (softsign).
    """
    return (ops.softsign(x) + 1) / 2


@_registered
def relu_gate(x: Any) -> Any:
    """min(max(x, 0), 1), relu clipped to [0, 1].

    Range [0, 1], slope 1 inside. Shut, without a slope, for every input below 0: give its bias a
    positive start.
    """
    return ops.clip(x, 0, 1)


@_registered
def hard_sigmoid_keras2(x: Any) -> Any:
    """min(max(0.2 x + 0.5, 0), 1), the hard sigmoid of Keras 2 and of ONNX by default.

    Range [0, 1], slope 1/5 inside (-2.5, 2.5). `keras.activations.hard_sigmoid` of Keras 3 is
    relu6(x + 3) / 6, slope 1/6 inside (-3, 3): weights trained with the one do not fit the other.

    Source: Courbariaux, Bengio, David, "BinaryConnect", 2015.
    """
    return ops.clip(0.2 * x + 0.5, 0, 1)


@_registered
def fast_gate(x: Any) -> Any:
    """sigmoid(sinh(x)), a gate that saturates double exponentially fast.

    Range (0, 1), slope at most 0.279, near -0.93 and 0.93. It comes close to 1 for moderate inputs,
    so that a state can be kept over very many steps.

    Source: Ohno, Kanai, Ida, "Fast saturating gate for learning long time scales with recurrent
    neural networks", 2022.
    """
    # Beyond 5 the gate is 0 or 1 to every digit, and sinh would overflow far out.
    return ops.sigmoid(ops.sinh(ops.clip(x, -5, 5)))


@_registered
def penalized_tanh(x: Any) -> Any:
    """tanh(x) for x > 0, else tanh(x) / 4, a candidate that leans to positive values.

    Range (-1/4, 1), slope at most 1, at 0.

    Sources: Xu, Huang, Li, "Revise saturated activation functions", 2016; found best inside LSTM
    cells by Eger, Youssef, Gurevych, "Is it time to swish?", 2018.
    """
    value = ops.tanh(x)
    return ops.where(x > 0, value, value / 4)


@_registered
def min_gru_g(x: Any) -> Any:
    """x + 0.5 for x >= 0, else sigmoid(x): the positive candidate of minGRU.

    Range (0, inf), slope 1 for x >= 0. Positive, so that a recurrence of it has a logarithm; a
    state that it feeds can only rise.

    Source: Feng et al., "Were RNNs all we needed?", 2024.
    """
    return ops.where(x >= 0, x + 0.5, ops.sigmoid(x))
