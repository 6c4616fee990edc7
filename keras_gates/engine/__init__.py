"""How a cell runs over time.

`why_not_fusable`, `why_never_fused_here` and `why_not_fused_here` say why a layer's sequences do
not go through the fused engine of the backend, which `make_engine` makes; those do not either of
which `is_symbolic` says that they have no values. `why_not_cudnn`, `why_not_cudnn_here` and
`make_cudnn` are for cuDNN. `paths` chooses between them. `use` has layers run on other engines for
a while.
"""

import importlib.util

import keras

from keras_gates._keras.calls import is_compiling, is_exporting
from keras_gates.cells import GatedCell
from keras_gates.engine import cudnn
from keras_gates.engine.base import PLAIN, Engine, in_use, use, used
from keras_gates.engine.native import library
from keras_gates.engine.recurrence import NotFusableError
from keras_gates.equations import NotTraceableError

__all__ = [
    "BACKPROP",
    "Engine",
    "NotFusableError",
    "is_symbolic",
    "make_cudnn",
    "make_engine",
    "use",
    "used",
    "why_never_fused_here",
    "why_not_cudnn",
    "why_not_cudnn_here",
    "why_not_fusable",
    "why_not_fused_here",
]

BACKPROP = ("auto", "fused", "autodiff")
_BACKENDS = ("tensorflow", "jax", "torch")
_FOR_CPUS = "the kernel is made for CPUs, and TensorFlow has a GPU here"


def why_not_fusable(layer):
    """Why the layer cannot take the fused path at all, or None."""
    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        return f"the {backend} backend has no fused engine"
    if layer.unroll:
        return "unroll=True asks for an unrolled loop"
    for name in ("__call__", "call", "advance"):
        if getattr(type(layer.cell), name) is not getattr(GatedCell, name):
            return f"{type(layer.cell).__name__} defines its own `{name}`"
    return None


def why_not_cudnn(layer):
    """Why cuDNN cannot run the layer at all, or None. It is for GPUs: see `cudnn.is_near`."""
    if layer.backprop != "auto":
        return f"backprop={layer.backprop!r} was given"
    if layer.return_gates:
        return "return_gates=True was given"
    return why_not_fusable(layer) or cudnn.why_not(layer.cell, keras.backend.backend())


def why_not_cudnn_here(sequences, mask):
    """Why cuDNN cannot run what is being computed now, or None."""
    if in_use():
        return PLAIN
    return cudnn.why_not_here(sequences, mask)


def why_never_fused_here(layer):
    """Why the layer cannot take the fused path on this machine, nor cuDNN, or None. The kernel is
    for CPUs, and on JAX there are scans without it."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        if layer.backprop == "fused" or not cudnn.is_near():
            return library.why_none()
        reason = why_not_cudnn(layer)
        return f"{_FOR_CPUS}; not cuDNN, because {reason}" if reason else None
    if backend == "torch":
        import torch

        return None if torch.cuda.is_available() else library.why_none()
    return None


def is_symbolic(sequences):
    """Whether Keras asks for shapes alone, on PyTorch and on JAX: of tensors that have no values,
    or dimensions that are symbols."""
    backend = keras.backend.backend()
    if backend == "torch":
        return sequences.device.type == "meta"
    return backend == "jax" and not all(isinstance(size, int) for size in sequences.shape)


def why_not_fused_here(layer, sequences):
    """Why the layer does not take the fused path in what is being computed now, or None."""
    automatic = layer.backprop != "fused"
    if in_use():
        return PLAIN
    if keras.backend.backend() == "jax":
        return _why_not_on_jax(layer, sequences)
    if keras.backend.backend() == "torch":
        return _why_not_on_torch(automatic, sequences)
    return library.why_not() or _why_not_on_tensorflow(automatic)


def _why_not_on_jax(layer, sequences):
    import jax

    if is_exporting():
        return PLAIN
    if layer.backprop == "fused" or _kernel_serves_jax():
        return None
    given = sequences, *(weight.value for weight in layer.cell.weights)
    if not any(isinstance(value, jax.core.Tracer) for value in given):
        return "outside jit and grad every call would be compiled"
    return None


def _kernel_serves_jax():
    import jax

    return library.load() is not None and jax.default_backend() == "cpu" and hasattr(jax, "ffi")


def _is_accelerated():
    """Whether JAX runs on something with more to do at once than one time step."""
    import jax

    return jax.default_backend() != "cpu"


def _why_not_on_torch(automatic, sequences):
    import torch

    device = sequences.device.type
    if device == "cuda" and automatic:
        return "on GPUs backprop='fused' alone runs a kernel"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "on GPUs its kernel needs Triton: pip install triton"
    if device not in ("cpu", "cuda"):
        return f"no kernel is made for {device}, where the sequences are"
    if torch.compiler.is_compiling():
        return "PyTorch compiles this function, and the kernel is none of its operations"
    return library.why_not() if device == "cpu" else None


def _why_not_on_tensorflow(automatic):
    import tensorflow as tf

    if not tf.executing_eagerly():
        if is_exporting():
            return PLAIN
        if is_compiling():
            return (
                "XLA compiles this function (jit_compile=True), and the kernel is none of its "
                "operations"
            )
    if automatic and cudnn.is_near():
        return _FOR_CPUS
    return None


def make_engine(cell, forced=False):
    """The `Engine` of the present backend, for one built cell.

    Args:
        cell: a GatedCell.
        forced: whether it was asked for. On GPUs the kernels made from a cell's program run only
            then.
    """
    backend = keras.backend.backend()
    if backend == "torch" and cell.kernel.value.device.type == "cuda":
        return _engine_of("gpu.torch", cell)
    if backend != "jax":
        return _engine_of(f"native.{backend}", cell)
    # On JAX there are scans for what the kernels cannot do.
    reasons = []
    for module in _of_jax(forced):
        try:
            return _engine_of(module, cell)
        except (NotFusableError, NotTraceableError) as reason:
            reasons.append(f", because {reason}")
    scans = _engine_of("jax", cell)
    if _kernel_serves_jax():
        scans.how += reasons[0]
    return scans


def _of_jax(forced):
    import jax

    if _kernel_serves_jax():
        return ["native.jax"]
    if forced and jax.default_backend() == "gpu":
        return ["gpu.jax", "parallel"]
    return ["parallel"] if _is_accelerated() else []


def make_cudnn(cell):
    """The `Engine` of cuDNN on the present backend, for one built cell."""
    return _engine_of(f"cudnn.{keras.backend.backend()}", cell)


def _engine_of(module, cell):
    return importlib.import_module(f"keras_gates.engine.{module}").FusedEngine(cell)
