"""The compiled kernel: loading it, and what a call of it takes. See `kernel.h` and `call.h`."""

import ctypes
import functools
import os
import pathlib
import warnings
import weakref

import keras
import numpy as np

from keras_gates._keras.calls import stacklevel

_PLACES = """
SCRATCH CONSTANT WEIGHT STATE NEW KEPT LOCAL D_STATE D_NEW D_INPUT D_PROJECTED FACTOR D_PRODUCT
D_WEIGHT MASK
"""
PLACES = _PLACES.split()
KINDS = ["INSTRUCTIONS", "PRODUCT", "TRANSPOSED"]

_PATH = pathlib.Path(__file__).with_name("kernel.so")
_TYPES = {"int": ctypes.c_int32, "long": ctypes.c_int64, "at": ctypes.c_void_p}
_TYPES["text"] = ctypes.c_char_p
_WEIGHT = """
at values
long size
at gradient
long gradient_size
int source gradient_of
"""
_JOB = """
long batch time features units
int backward is_double shares members tile blocks recurrent_blocks projected
int states sums
int kept_states kept registers parts products weights
at places code part constants input_register projected_register
at product_block d_input_of d_projected_of
at weight x kernel recurrent bias recurrent_bias mask
int input_masks recurrent_masks kept_masks
at input_mask recurrent_mask kept_mask initial last sequences memory
at d_sequences d_last d_initial d_x d_kernel d_recurrent d_bias d_recurrent_bias
"""


def _fields(text):
    lines = (line.split() for line in text.strip().splitlines())
    return [(name, _TYPES[kind]) for kind, *names in lines for name in names]


_INPUT = """
long bytes
int extent
text name
"""
_CALL = """
choices choice
limits limit
entries entries
int choices threads
long of_step of_thread of_member
int biases weights has_mask sequences gradients d_x inputs results
at input like
"""
CHOICES = 3
EXTENTS = ["FIXED", "BY_ROW", "BY_STEP", "AS_KEPT"]
SEQUENCES, MEMORY = -1, -2


class Weight(ctypes.Structure):
    _fields_ = _fields(_WEIGHT)


class Job(ctypes.Structure):
    _fields_ = _fields(_JOB)


class Input(ctypes.Structure):
    _fields_ = _fields(_INPUT)


_TYPES |= {
    "choices": Job * CHOICES,
    "limits": ctypes.c_int64 * CHOICES,
    "entries": ctypes.c_int32 * CHOICES,
}


class CallFields(ctypes.Structure):
    _fields_ = _fields(_CALL)


def load():
    """The library, or None where there is none of use: see `why_none`."""
    return _loaded()[0]


def why_none():
    """Why there is no library of use, or None."""
    return _loaded()[1]


@functools.cache
def _loaded():
    """The library and None, or None and why there is none."""
    if not _PATH.exists():
        folder = _PATH.parents[3]
        if (folder / "setup.py").exists():
            return None, (
                f"keras_gates is imported from {folder}, a folder of its sources, in which "
                "no kernel was built: `pip install -e .` there builds it, with a C++ compiler or "
                "`pip install ziglang`; where keras_gates is installed already, run from another "
                "folder"
            )
        return None, (
            "the kernel of keras_gates was not built when the package was installed, for want of a "
            "C++ compiler: install one, or `pip install ziglang`, and install keras_gates again"
        )
    if keras.backend.backend() == "tensorflow":
        operation()  # TensorFlow learns of operations only of a library that it is first to load
    try:
        library = ctypes.CDLL(str(_PATH))
        size = library.size_of_call()
    except (OSError, AttributeError) as error:  # no library, one for other machines, or another one
        return None, (
            f"the kernel of keras_gates cannot be loaded ({error}): install keras_gates again, on "
            "the machine that it is to run on"
        )
    if size != ctypes.sizeof(CallFields):
        return None, (
            "the kernel of keras_gates was built from other sources than are here: install "
            "keras_gates again"
        )
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.operations.restype = library.instructions.restype = ctypes.c_char_p
    library.run.argtypes = [pointer, number, number, pointer, pointer, pointer]
    library.kept_numbers.argtypes, library.kept_numbers.restype = [pointer, number, number], number
    library.take.argtypes, library.take.restype = [number], pointer
    library.give.argtypes, library.give.restype = [pointer], None
    library.add_call.argtypes, library.add_call.restype = [pointer], number
    return library, None


@functools.cache
def operation():
    """The function of TensorFlow's operation that does calls, or None where there is none."""
    import tensorflow as tf

    try:
        return getattr(tf.load_op_library(str(_PATH)), "keras_gates_call", None)
    except (RuntimeError, tf.errors.OpError):
        return None


@functools.cache
def why_not():
    """Why no layer can run in the kernel, or None; a warning says so as well, once."""
    reason = why_none()
    if reason:
        warnings.warn(
            f"Recurrent layers run several times slower: {reason}", stacklevel=stacklevel()
        )
    return reason


@functools.cache
def operations():
    """From the name of each operation to its number."""
    names = load().operations().decode().split()
    return {name: number for number, name in enumerate(names)}


@functools.cache
def threads():
    """How many threads a call may use: the cores that this process may, or as many as
    `KERAS_GATES_THREADS` says."""
    wanted = os.environ.get("KERAS_GATES_THREADS", "")
    if wanted and not (wanted.isdigit() and int(wanted)):
        raise ValueError(f"KERAS_GATES_THREADS must be a positive integer. Received: {wanted!r}")
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    # More than a few per core, which tests ask for, only wait for each other.
    return min(int(wanted), 16 * cores) if wanted else cores


# Arrays of more bytes than this come from memory that was used before: what is new has to be mapped
# page by page, which takes as long as some layers.
_SMALL = 2**15


def empty(shape, dtype):
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    # What views have as their base, and so keeps the memory out of use as long as any of them.
    holder = _Holder(size)
    return np.asarray(holder).view(dtype).reshape(shape)


class _Holder:
    def __init__(self, size):
        at = load().take(size)
        if not at:
            raise MemoryError(f"no memory for {size} bytes")
        self.__array_interface__ = {
            "version": 3, "shape": (size,), "typestr": "|u1", "data": (at, False)
        }  # fmt: skip
        weakref.finalize(self, load().give, at).atexit = False


def addresses(arrays):
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])
