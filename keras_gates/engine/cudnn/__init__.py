"""Where cuDNN runs the sequences of a layer, as it does those of `keras.layers.GRU` and `LSTM`.

It computes one GRU and one LSTM. Which cells are those is read from their equations, so that a cell
of one's own may be one of them, and an option that changes the equations is noticed.
"""

import functools

import keras

from keras_gates._keras.calls import is_compiling, is_exporting
from keras_gates.cells import GatedCell, zoneout
from keras_gates.cells.program import trace
from keras_gates.cells.step import projected_blocks, recurrent_blocks
from keras_gates.engine.base import PLAIN
from keras_gates.equations import NotTraceableError, apply, leaf

# The equations that Keras has cuDNN compute, by backend.
KINDS = {"tensorflow": ("gru", "lstm"), "jax": ("lstm",), "torch": ("gru", "lstm")}


def why_not(cell, backend):
    """Why cuDNN cannot run a cell, or None.

    Args:
        cell: a GatedCell. Once it is built, its weights are looked at as well.
        backend: the name of one of Keras' backends.
    """
    name = type(cell).__name__
    for hindered, reason in (
        (cell.clips, "gradients are clipped inside backpropagation through time"),
        (cell.penalties, f"{' and '.join(cell.penalties)} is added up step by step"),
        (cell.recurrent_dropout, "cuDNN has no recurrent_dropout"),
        (zoneout.shares(cell), "cuDNN has no zoneout"),
        (cell.layer_norm, "cuDNN has no layer normalization"),
        (not cell.use_bias, "Keras calls cuDNN with biases, and use_bias=False was given"),
        (
            type(cell).parametrize is not GatedCell.parametrize,
            f"{name} makes its recurrent kernel with a `parametrize` of its own",
        ),
    ):
        if hindered:
            return reason
    try:
        kind = kind_of(cell)
    except NotTraceableError as error:
        return f"the equations cannot be read: {error}"
    if kind is None or (cell.built and not _has_weights_of(kind, cell)):
        return (
            "cuDNN computes nothing but a GRU with reset_after=True and an LSTM, both with sigmoid "
            "gates and tanh"
        )
    if kind not in KINDS.get(backend, ()):
        return f"Keras has no {kind.upper()} of cuDNN on {backend}"
    if backend == "jax" and cell.compute_dtype != "float32":
        return f"JAX calls cuDNN in float32 alone, and the layer computes in {cell.compute_dtype}"
    return None


def kind_of(cell):
    """Which of cuDNN's equations a cell has, "gru" or "lstm"; None if it has others.

    Raises:
        NotTraceableError: its equations cannot be read.
    """
    found = [value for _, value in trace(cell).outputs]
    blocks, states = tuple(cell.blocks), tuple(cell.state_names)
    if projected_blocks(cell) != blocks or recurrent_blocks(cell) != blocks:
        return None
    for kind, (equations, block_count, state_count, two_biases) in _EQUATIONS.items():
        fits = (len(blocks), len(states), cell.two_biases) == (block_count, state_count, two_biases)
        # Values that are computed alike are one object.
        if fits and found == equations(blocks, states):
            return kind
    return None


def _gru(blocks, states):
    z, r, n = (_projections(block) for block in blocks)
    h = leaf("state", states[0])
    z, r = apply("sigmoid", _sum_of(z)), apply("sigmoid", _sum_of(r))
    return [z * h + (1 - z) * apply("tanh", n[0] + r * n[1])]


def _lstm(blocks, states):
    i, f, g, o = (_sum_of(_projections(block)) for block in blocks)
    i, f, o = (apply("sigmoid", gate) for gate in (i, f, o))
    c = f * leaf("state", states[1]) + i * apply("tanh", g)
    return [o * apply("tanh", c), c]


def _projections(block):
    """`x W_k + b_k` and `h U_k (+ c_k)` of a block k."""
    return leaf("x", block), leaf("u", block)


def _sum_of(pair):
    return pair[0] + pair[1]


# The equations, of how many blocks and states, and whether there is a second bias.
_EQUATIONS = {"gru": (_gru, 3, 1, True), "lstm": (_lstm, 4, 2, False)}


def _has_weights_of(kind, cell):
    """Whether the weights are those of Keras' layer, and no more."""
    columns = cell.units * len(cell.blocks)
    wanted = [
        (cell.kernel.shape[0], columns),
        (cell.units, columns),
        (2, columns) if kind == "gru" else (columns,),
    ]
    return [tuple(weight.shape) for weight in cell.weights] == wanted


def why_not_here(sequences, mask):
    """Why cuDNN cannot run what is being computed now, or None."""
    backend = keras.backend.backend()
    if sequences.shape[0] == 0:
        return "there are no samples"
    if mask is not None and backend != "tensorflow":
        return f"Keras gives cuDNN no mask on {backend}"
    if backend == "torch":
        return _why_not_on_torch()
    if is_exporting():
        return PLAIN
    if backend == "tensorflow" and is_compiling():
        return "XLA compiles this function, and cuDNN's are none of its operations"
    return None


def _why_not_on_torch():
    import torch

    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "PyTorch compiles this function, and Keras leaves cuDNN alone there"
    return None


def is_near(sequences=None):
    """Whether the backend runs on a GPU; on PyTorch, whether `sequences` are on one with cuDNN."""
    backend = keras.backend.backend()
    if backend == "torch":
        return sequences.device.type == "cuda" and _torch_has_cudnn()
    return _HAS_GPU[backend]() if backend in _HAS_GPU else False


def _torch_has_cudnn():
    import torch

    return torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled


@functools.cache
def _tensorflow_has_gpu():
    import tensorflow as tf

    # Logical ones cannot be listed without settling what the physical ones are.
    return bool(tf.config.list_physical_devices("GPU") and tf.config.list_logical_devices("GPU"))


def _jax_has_gpu():
    import jax

    return jax.default_backend() == "gpu"


_HAS_GPU = {"tensorflow": _tensorflow_has_gpu, "jax": _jax_has_gpu}
