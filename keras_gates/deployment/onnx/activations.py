"""Activations as attributes of ONNX's recurrent operators, found by what they compute."""

import dataclasses
import warnings

from keras_gates.cells import SimpleRNNCell
from keras_gates.cells.program import trace
from keras_gates.equations import NotTraceableError, leaf
from keras_gates.equations.values import number_of

_X = leaf("x", "candidate") + leaf("u", "candidate")  # what an activation is applied to


@dataclasses.dataclass(frozen=True)
class Activation:
    """The activation `name` of ONNX, at scale * x.

    Attributes:
        name: as in the attribute `activations` of GRU, LSTM and RNN.
        alpha, beta: its parameters, or None where it has none.
        scale: what the weights of its pre-activation are multiplied by.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    scale: float = 1.0

    @property
    def attributes(self):
        """All but the scale, which is no attribute."""
        return self.name, self.alpha, self.beta


def native(activation):
    """The `Activation` that computes the same, or None.

    Args:
        activation: a function or a Keras layer.

    Example:

    >>> from keras_gates.deployment.onnx.activations import native
    >>> native(keras.layers.LeakyReLU(negative_slope=0.1))
    Activation(name='LeakyRelu', alpha=0.1, beta=None, scale=1.0)
    >>> native(lambda x: 1.7159 * keras.ops.tanh(2 / 3 * x)).attributes
    ('ScaledTanh', 1.7159, 0.6666666666666666)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of functions without a name
            program = trace(SimpleRNNCell(1, candidate_activation=activation))
    except NotTraceableError:
        return None
    (value,) = program.forward
    p, inner, q = _affine(value, _X)
    if inner is _X:
        return Activation("Affine", p, q)
    if not inner.arguments:  # a constant
        return None
    first, *others = inner.arguments
    if inner.operation == "where":  # where(x > t, x, 0)
        return _thresholded(*inner.arguments) if (p, q) == (1, 0) else None
    a, x, b = _affine(first, _X)
    if x is not _X or others:
        return None
    if inner.operation in _LIMITS:
        return _hard_sigmoid(inner, a, b, p, q)
    if b:
        return None
    return _of_scaled(inner, a, p, q)


def _affine(value, x):
    """(p, inner, q) with value = p inner + q, where inner is x if it can be."""
    p, q = 1.0, 0.0
    while value is not x:
        numbers = [number_of(argument) for argument in value.arguments]
        match value.operation, numbers:
            case "add", [None, c] | [c, None] if c is not None:
                q += p * c
            case "subtract", [None, c] if c is not None:
                q -= p * c
            case "subtract", [c, None] if c is not None:
                p, q = -p, q + p * c
            case "multiply", [None, c] | [c, None] if c is not None:
                p *= c
            case "divide", [None, c] if c is not None:
                p /= c
            case "negative", _:
                p = -p
            case _:
                break
        value = value.arguments[numbers.index(None)]
    return p, value, q


# Of what is an affine function within limits: its slope, its value at 0, the limits.
_LIMITS = {
    "clip": lambda v: (1, 0, v["low"], v["high"]),
    "hard_sigmoid": lambda v: (1 / 6, 0.5, 0, 1),
    "hard_tanh": lambda v: (1, 0, -1, 1),
    "relu6": lambda v: (1, 0, 0, 6),
    "sparse_sigmoid": lambda v: (0.5, 0.5, 0, 1),
}


def _hard_sigmoid(inner, a, b, p, q):
    """p inner(a x + b) + q, whose limits must be 0 and 1."""
    slope, at_zero, low, high = _LIMITS[inner.operation](inner)
    if low is None or high is None:
        return None
    # The last digits depend on the order of operations.
    if sorted(round(p * limit + q, 12) for limit in (low, high)) != [0, 1]:
        return None
    return Activation("HardSigmoid", p * slope * a, p * (slope * b + at_zero) + q)


def _thresholded(condition, then, otherwise):
    if condition.operation != "greater" or then is not _X or number_of(otherwise) != 0:
        return None
    x, threshold = condition.arguments
    if x is not _X or number_of(threshold) is None:
        return None
    return Activation("ThresholdedRelu", float(number_of(threshold)))


def _of_scaled(inner, a, p, q):
    """p inner(a x) + q."""
    match inner.operation, p, q:
        case "tanh", 0.5, 0.5:
            return Activation("Sigmoid", scale=2 * a)
        case "tanh", 1.0, 0.0:
            return Activation("Tanh", scale=a)
        case "tanh", _, 0.0:
            return Activation("ScaledTanh", p, a)
        case "sigmoid", 2.0, -1.0:
            return Activation("Tanh", scale=a / 2)
        case "relu", _, 0.0 if p > 0:
            return Activation("Relu", scale=p * a)
        case "leaky_relu", _, 0.0 if p > 0:
            return Activation("LeakyRelu", inner["slope"], scale=p * a)
        case "threshold", 1.0, 0.0 if a == 1 and inner["low"] == 0:
            return Activation("ThresholdedRelu", inner["threshold"])
        case "sigmoid" | "softplus" | "softsign", 1.0, 0.0:
            return Activation(inner.operation.capitalize(), scale=a)
        case "elu", 1.0, 0.0:
            return Activation("Elu", inner["alpha"], scale=a)
        case "celu", 1.0, 0.0 if inner["alpha"] == 1:
            return Activation("Elu", 1.0, scale=a)
    return None
