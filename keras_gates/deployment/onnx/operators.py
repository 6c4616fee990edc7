"""Cells as ONNX's recurrent operators: GRU, LSTM, RNN."""

import dataclasses
import warnings

import numpy as np

from keras_gates import activations
from keras_gates.cells import GatedCell, GRUCell, LSTMCell, SimpleRNNCell
from keras_gates.cells.base import CANDIDATE
from keras_gates.cells.program import trace
from keras_gates.convert import cell_from_keras
from keras_gates.deployment.onnx.activations import native
from keras_gates.equations import NotTraceableError

# The blocks in the order of ONNX's weights.
_ORDER = {
    "GRU": ("update", "reset", "candidate"),
    "LSTM": ("input", "output", "forget", "candidate"),
    "RNN": ("candidate",),
}
# What the operators compute: of each the type, the cell, its options, attributes.
_KNOWN: tuple[tuple[str, type[GatedCell], dict, dict], ...] = (
    ("GRU", GRUCell, {"reset_after": True}, {"linear_before_reset": 1}),
    ("GRU", GRUCell, {"reset_after": False}, {"linear_before_reset": 0}),
    ("LSTM", LSTMCell, {}, {}),
    ("RNN", SimpleRNNCell, {}, {}),
)


class NoOperatorError(ValueError):
    """ONNX has no operator that computes what a cell does; the message is the reason."""


@dataclasses.dataclass
class Operator:
    """A cell as an ONNX operator, in one direction.

    Attributes:
        op_type: "GRU", "LSTM" or "RNN".
        attributes: those beside the activations and the direction.
        activations: the activations f, (g, (h)), each (name, alpha, beta).
        weights: W, R and B of https://onnx.ai/onnx/operators, without the axis of directions:
            (blocks * units, features), (blocks * units, units), (2 * blocks * units,).
    """

    op_type: str
    attributes: dict
    activations: list
    weights: tuple


def attributes(operators, direction):
    """All attributes of one operator.

    Args:
        operators: one `Operator`, or two for both directions, the forward one first.
        direction: "forward", "reverse" or "bidirectional".
    """
    functions = [function for each in operators for function in each.activations]
    names, alphas, betas = zip(*functions, strict=True)
    found = {
        **operators[0].attributes,
        "direction": direction,
        "activations": list(names),
        # Of the activations that have one, in their order.
        "activation_alpha": [value for value in alphas if value is not None],
        "activation_beta": [value for value in betas if value is not None],
    }
    # An empty list would have no type.
    return {name: value for name, value in found.items() if value != []}


def operator(cell):
    """The `Operator` of a built cell.

    Args:
        cell: a cell of this package or of Keras.

    Raises:
        NoOperatorError: there is none, with the reason.

    Example:

    >>> from keras_gates.deployment.onnx.operators import operator
    >>> cell = keras_gates.LSTMCell(4, gate_activation="hard_sigmoid_keras2")
    >>> cell.build((None, 3))
    >>> operator(cell).activations
    [('HardSigmoid', 0.2, 0.5), ('Tanh', None, None), ('Tanh', None, None)]
    """
    given = cell
    if not isinstance(cell, GatedCell):
        cell = cell_from_keras(cell)
    op_type, plain = (None, {}) if cell is None else _known(cell)
    if op_type is None:
        raise NoOperatorError(f"ONNX has no operator for the cell {type(given).__name__}")
    if cell.compute_dtype != "float32":
        raise NoOperatorError(
            f"it computes in {cell.compute_dtype}, and ONNX Runtime's {op_type} in float32"
        )
    gates, candidate = cell.gate_activations, cell.candidate_activation
    output = getattr(cell, "output_activation", candidate) if op_type == "LSTM" else None
    found = {name: _native(function, name) for name, function in gates.items()}
    kinds = {activation.attributes for activation in found.values()}
    if len(kinds) > 1:
        listed = ", ".join(f"{n} has {activations.name_of(a)}" for n, a in gates.items())
        raise NoOperatorError(f"all gates of an ONNX {op_type} share one activation, and {listed}")
    found[CANDIDATE] = _native(candidate, "candidate")
    kinds = [*kinds, found[CANDIDATE].attributes]
    if output is not None:
        after = _native(output, "output activation")
        if after.scale != 1:
            raise NoOperatorError(
                f"ONNX has no activation {activations.name_of(output)} (of the cell state)"
            )
        kinds.append(after.attributes)
    scales = {name: activation.scale for name, activation in found.items()}
    plain = {"hidden_size": cell.units, **plain}
    return Operator(op_type, plain, kinds, _weights(cell, op_type, scales))


def _known(cell):
    """The type of the operator with the equations of a cell, and its attributes; or (None, {})."""
    try:
        program = trace(cell, opaque=True)
    except NotTraceableError:
        return None, {}
    for op_type, kind, options, found in _KNOWN:
        parts = [(set(c.blocks), set(c.gate_names()), c.state_names) for c in (cell, kind)]
        if parts[0] != parts[1]:
            continue
        if kind is LSTMCell and hasattr(cell, "output_activation"):
            options = {"output_activation": cell.output_activation}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the cell were given when it was made
            known = kind(
                cell.units,
                gate_activation=cell.gate_activations or None,
                candidate_activation=cell.candidate_activation,
                recurrent_initializer="zeros",  # the default takes long for many units
                **options,
            )
        known.build((None, 1))
        if program.forward == trace(known, opaque=True).forward:
            return op_type, found
    return None, {}


def _native(activation, what):
    found = native(activation)
    if found is None:
        raise NoOperatorError(
            f"ONNX has no activation {activations.name_of(activation)} (of {what})"
        )
    return found


def _weights(cell, op_type, scales):
    """W, R and B, with the columns of each block scaled and in ONNX's order."""

    def arranged(weight):
        columns = np.split(np.asarray(weight, "float32"), len(_ORDER[op_type]), axis=-1)
        columns = dict(zip(cell.blocks, columns, strict=True))
        return np.concatenate(
            [scales[block] * columns[block] for block in _ORDER[op_type]], axis=-1
        )

    kernel, recurrent = arranged(cell.kernel).T, arranged(cell.parametrized_kernel).T
    bias = np.zeros((2, len(kernel)), "float32")
    if cell.bias is not None:
        # A single bias is that of the inputs.
        bias[: np.ndim(cell.bias)] = arranged(cell.bias)
    return kernel, recurrent, bias.ravel()
