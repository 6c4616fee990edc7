"""A SavedModel as the servers share it: what it refuses, and many requests as one call."""

import asyncio
import collections
import pathlib

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Limits per request: without them one client could take all of the memory.
MOST_SAMPLES = 1024
MOST_STEPS = 10_000
# Requests that wait are run together, up to so many samples.
LARGEST_BATCH = 1024


class BadRequest(ValueError):
    """The client's mistake; the message says what is expected."""


class ServedModel:
    """A SavedModel that checks what it is given.

    Args:
        folder: of the model, with a folder per version in it, 1, 2, ..., as TensorFlow Serving has
            it. The latest is loaded.

    Attributes:
        name: of the folder.
        version: the latest one.
        definitions: from a signature to its SignatureDef, a protocol buffer.
        inputs: from a signature to a dict from the name of an input to a `tf.TensorSpec`.
    """

    def __init__(self, folder):
        folder = pathlib.Path(folder).absolute()
        files = folder.glob("*/saved_model.pb")
        versions = [int(file.parent.name) for file in files if file.parent.name.isdecimal()]
        if (folder / "saved_model.pb").exists():
            raise SystemExit(
                f"{folder} is a SavedModel itself. Give a folder with one folder per version in "
                f"it: {folder.name}/1, and so on."
            )
        if not versions:
            raise SystemExit(f"There is no model in {folder}: run make_model.py first.")
        self.name, self.version = folder.name, max(versions)
        path = folder / str(self.version)
        file = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        self.definitions = dict(file.meta_graphs[0].signature_def)
        self._loaded = tf.saved_model.load(path)
        self._signatures = dict(self._loaded.signatures)
        self.inputs = {
            name: function.structured_input_signature[1]
            for name, function in self._signatures.items()
        }

    def checked(self, signature, given, kept=None):
        """The inputs of a call as arrays.

        Args:
            signature: its name.
            given: from the names of its inputs to arrays, or to lists of numbers.
            kept: those of its inputs that are not the client's to give.

        Raises:
            BadRequest: one of them is not what the signature takes.
        """
        if not isinstance(signature, str) or signature not in self.inputs:
            raise BadRequest(
                f"signature_name must be one of {', '.join(self.inputs)}, not {signature!r}"
            )
        specs, kept = self.inputs[signature], kept or {}
        wanted = sorted(set(specs) - set(kept))
        if not isinstance(given, dict) or sorted(given) != wanted:
            received = ", ".join(given) if isinstance(given, dict) else type(given).__name__
            raise BadRequest(f"inputs must be {', '.join(wanted)}, not {received or 'nothing'}")
        given = {**given, **kept}
        arrays = {name: _array(name, given[name], spec) for name, spec in specs.items()}
        if len({len(array) for array in arrays.values() if array.ndim}) > 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise BadRequest(f"inputs must have equally many samples: {shapes}")
        return arrays

    def run(self, signature, arrays):
        """What a signature gives for arrays that were checked: arrays by name."""
        given = {name: tf.constant(array) for name, array in arrays.items()}
        try:
            found = self._signatures[signature](**given)
        except tf.errors.InvalidArgumentError as error:  # a token that no Embedding knows, say
            # The reason is the last line that does not tell where in the graph it arose.
            lines = [line.strip() for line in str(error.message).splitlines()]
            said = [line for line in lines if line and "{{" not in line and "[Op:" not in line]
            reason = said[-1] if said else "invalid argument"
            raise BadRequest(f"the model cannot take these values: {reason}") from None
        return {name: value.numpy() for name, value in found.items()}


class Batcher:
    """Runs requests that come in together as one call, each sample with its own states.

    While a call computes, requests wait, and all that fit together are the next call: one alone
    does not wait for others, and a thousand take few calls.

    Args:
        model: a `ServedModel`.
    """

    def __init__(self, model):
        self.model = model
        self._waiting = collections.defaultdict(collections.deque)
        self._working = None

    async def run(self, signature, arrays):
        """What the model gives for the arrays of one request, from `ServedModel.checked`."""
        if not all(array.ndim for array in arrays.values()):  # has no axis of samples
            return await asyncio.to_thread(self.model.run, signature, arrays)
        kind = signature, *(array.shape[1:] for array in arrays.values())
        result = asyncio.get_running_loop().create_future()
        self._waiting[kind].append((arrays, result))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await result

    async def _work(self):
        while self._waiting:
            kind = next(iter(self._waiting))
            waiting = self._waiting.pop(kind)  # those of one kind may not starve another
            batch = []
            while waiting and (
                not batch
                or sum(_samples(a) for a, _ in batch) + _samples(waiting[0][0]) <= LARGEST_BATCH
            ):
                batch.append(waiting.popleft())
            if waiting:
                self._waiting[kind].extend(waiting)
            await self._answer(kind[0], *zip(*batch, strict=True))

    async def _answer(self, signature, requests, results):
        try:
            together = {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}
            found = await asyncio.to_thread(self.model.run, signature, together)
        except BadRequest as error:
            if len(requests) > 1:  # of one of them: each for itself
                for request, result in zip(requests, results, strict=True):
                    await self._answer(signature, [request], [result])
            elif not results[0].done():
                results[0].set_exception(error)
            return
        except Exception as error:  # the server's fault: all of them hear of it
            for result in results:
                if not result.done():
                    result.set_exception(error)
            return
        ends = np.cumsum([_samples(request) for request in requests])
        for request, result, end in zip(requests, results, ends, strict=True):
            if not result.done():  # a client that has gone does not wait
                own = slice(end - _samples(request), end)
                result.set_result({name: value[own] for name, value in found.items()})


def _samples(arrays):
    return len(next(iter(arrays.values())))


def _array(name, value, spec):
    """`value` as an array that fits a specification; BadRequest if it does not."""
    expected = f"{name} must be {spec.dtype.name} of shape {_shown(spec.shape)}"
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        raise BadRequest(f"{expected}, and its rows differ in length or depth") from None
    if array.dtype.kind not in ("b" if spec.dtype.is_bool else "fiu"):
        raise BadRequest(f"{expected}, and holds something other than numbers")
    if len(array.shape) != len(spec.shape) or any(
        known not in (None, size) for known, size in zip(spec.shape, array.shape, strict=True)
    ):
        raise BadRequest(f"{expected}, not {_shown(array.shape)}")
    if not array.size:
        raise BadRequest(f"{expected}, and is empty: {_shown(array.shape)}")
    for axis, (most, what) in enumerate([(MOST_SAMPLES, "samples"), (MOST_STEPS, "time steps")]):
        if array.ndim > axis and spec.shape[axis] is None and array.shape[axis] > most:
            raise BadRequest(f"{name} may have {most} {what} at most, not {array.shape[axis]}")
    if spec.dtype.is_integer:
        if array.dtype.kind == "f":
            raise BadRequest(f"{expected}, and holds floating-point numbers")
        if not (spec.dtype.min <= array.min() and array.max() <= spec.dtype.max):
            raise BadRequest(f"{expected}, and holds numbers that are too large for that")
    if name == "batch_size" and not array.ndim and not 1 <= array <= MOST_SAMPLES:
        raise BadRequest(f"{name} must be from 1 to {MOST_SAMPLES}, not {array}")
    with np.errstate(over="ignore"):
        array = array.astype(spec.dtype.as_numpy_dtype)
    if not spec.dtype.is_integer and not np.isfinite(array).all():
        raise BadRequest(f"{name} must be finite, and holds NaN, infinite or too large numbers")
    return array


def _shown(shape):
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
