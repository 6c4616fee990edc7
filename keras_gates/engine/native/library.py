"""The compiled kernel: loading it, and what a call of it takes. See `kernel.h`."""

import ctypes
import functools
import os
import pathlib
import threading
import warnings
import weakref

import numpy as np

from keras_gates._keras.calls import stacklevel

_PLACES = """
SCRATCH CONSTANT WEIGHT STATE NEW KEPT LOCAL D_STATE D_NEW D_INPUT D_PROJECTED FACTOR D_PRODUCT
D_WEIGHT
"""
PLACES = _PLACES.split()
KINDS = ["INSTRUCTIONS", "PRODUCT", "TRANSPOSED"]

_PATH = pathlib.Path(__file__).with_name("kernel.so")
_TYPES = {"int": ctypes.c_int32, "long": ctypes.c_int64, "at": ctypes.c_void_p}
_WEIGHT = """
at values
long size
at gradient
long gradient_size
"""
_JOB = """
long batch time features units
int backward is_double shares tile blocks projected states sums
int kept_states kept registers parts products weights
at places code part constants input_register projected_register
at product_block d_input_of d_projected_of
at weight x kernel recurrent bias recurrent_bias mask
int input_masks recurrent_masks
at input_mask recurrent_mask initial last sequences memory
at d_sequences d_last d_initial d_x d_kernel d_recurrent d_bias d_recurrent_bias
"""


def _fields(text):
    lines = (line.split() for line in text.strip().splitlines())
    return [(name, _TYPES[kind]) for kind, *names in lines for name in names]


class Weight(ctypes.Structure):
    _fields_ = _fields(_WEIGHT)


class Job(ctypes.Structure):
    _fields_ = _fields(_JOB)


@functools.cache
def load():
    """The library, or None where it was not built, or from other sources than these."""
    if not _PATH.exists():
        return None
    library = ctypes.CDLL(str(_PATH))
    if library.size_of_job() != ctypes.sizeof(Job):
        return None
    library.operations.restype = library.instructions.restype = ctypes.c_char_p
    library.run.argtypes = [ctypes.POINTER(Job), ctypes.c_int]
    return library


@functools.cache
def why_not():
    """Why no layer can run in the kernel, or None; a warning says so as well, once."""
    if load() is not None:
        return None
    reason = (
        "the kernel of keras_gates was not built when the package was installed, for want of a "
        "C++ compiler: install one, or `pip install ziglang`, and install keras_gates again"
    )
    warnings.warn(f"Recurrent layers run several times slower: {reason}", stacklevel=stacklevel())
    return reason


@functools.cache
def operations():
    """From the name of each operation to its number."""
    names = load().operations().decode().split()
    return {name: number for number, name in enumerate(names)}


@functools.cache
def lanes(dtype):
    """How many numbers a vector has."""
    return load().lanes(int(np.dtype(dtype) == np.float64))


@functools.cache
def threads():
    """How many threads a call may use: the cores that this process may, or as many as
    `KERAS_GATES_THREADS` says."""
    wanted = os.environ.get("KERAS_GATES_THREADS", "")
    if wanted and not (wanted.isdigit() and int(wanted)):
        raise ValueError(f"KERAS_GATES_THREADS must be a positive integer. Received: {wanted!r}")
    if wanted:
        return int(wanted)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def run(job):
    if load().run(ctypes.byref(job), threads()):
        raise MemoryError("the kernel of a recurrent layer got no memory")


# ---------------------------------------------------------------------- arrays

# Arrays of more bytes than this come from memory that was used before: what is new has to be mapped
# page by page, which takes as long as some layers.
_SMALL = 2**15
_ALIGNMENT = 64
_free: dict[int, list] = {}
_lock = threading.Lock()


def empty(shape, dtype):
    """An array that is aligned, so that backends take it as it is."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    if size < _SMALL:
        return _aligned(size)[:size].view(dtype).reshape(shape)
    rounded = 1 << (size - 1).bit_length() if size < 2**20 else -(-size // 2**18) * 2**18
    with _lock:
        found = _free.get(rounded)
        memory = found.pop() if found else None
    if memory is None:
        memory = _aligned(rounded)
    # What views have as their base, and so keeps the memory out of use as long as any of them.
    holder = _Holder(memory)
    weakref.finalize(holder, _give_back, memory)
    return np.asarray(holder)[:size].view(dtype).reshape(shape)


class _Holder:
    def __init__(self, memory):
        self.__array_interface__ = memory.__array_interface__


# Of each size, so many are kept at most.
_KEPT = 4


def _give_back(memory):
    with _lock:
        found = _free.setdefault(memory.nbytes, [])
        if len(found) < _KEPT:
            found.append(memory)


def _aligned(size):
    memory = np.empty(size + _ALIGNMENT, "uint8")
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]


def address(array):
    return None if array is None else array.ctypes.data


def addresses(arrays):
    """An array of pointers; None is a null pointer."""
    return (ctypes.c_void_p * max(1, len(arrays)))(*[address(a) for a in arrays])
