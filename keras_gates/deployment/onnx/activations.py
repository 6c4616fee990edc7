"""Activations as attributes of ONNX's recurrent operators."""

import dataclasses

import keras

from keras_gates import activations


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


# Exact values: none relies on a default, because runtimes differ in theirs.
_BY_NAME = {
    "celu": Activation("Elu", 1.0),  # the two differ in their parameter alone
    "elu": Activation("Elu", 1.0),
    "hard_sigmoid": Activation("HardSigmoid", 1 / 6, 0.5),
    "leaky_relu": Activation("LeakyRelu", 0.2),
    "linear": Activation("Affine", 1.0, 0.0),
    "relu": Activation("Relu"),
    "sigmoid": Activation("Sigmoid"),
    "softplus": Activation("Softplus"),
    "softsign": Activation("Softsign"),
    "tanh": Activation("Tanh"),
}
_OWN = {
    activations.hard_sigmoid_keras2: Activation("HardSigmoid", 0.2, 0.5),
    activations.relu_gate: Activation("HardSigmoid", 1.0, 0.0),
    activations.tanh_gate: Activation("Sigmoid", scale=2.0),
}


def native(activation):
    """The `Activation` that computes the same, or None.

    Args:
        activation: a function or a Keras layer.

    Example:

    >>> from keras_gates.deployment.onnx.activations import native
    >>> native(keras.layers.LeakyReLU(negative_slope=0.1))
    Activation(name='LeakyRelu', alpha=0.1, beta=None, scale=1.0)
    """
    if isinstance(activation, keras.layers.Layer):
        return _of_layer(activation)
    if activation in _OWN:
        return _OWN[activation]
    try:
        name = activations.serialize(activation, "activation")
    except ValueError:  # a function that nobody can name
        return None
    return _BY_NAME.get(name) if isinstance(name, str) else None


def _of_layer(layer):
    if type(layer) is keras.layers.Activation:
        return native(layer.activation)
    if type(layer) is keras.layers.LeakyReLU:
        return Activation("LeakyRelu", float(layer.negative_slope))
    if type(layer) is keras.layers.ELU:
        return Activation("Elu", float(layer.alpha))
    if type(layer) is keras.layers.ReLU and layer.max_value is None:
        if not layer.threshold:
            return Activation("LeakyRelu", float(layer.negative_slope))
        if not layer.negative_slope:
            return Activation("ThresholdedRelu", float(layer.threshold))
    return None
