"""Whether a written file does what its model does, found out in a process without this package."""

import contextlib
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
from keras import tree

from keras_gates._keras.layers import get_keras_mask
from keras_gates.deployment.errors import ParityError
from keras_gates.deployment.names import output_names
from keras_gates.deployment.report import DataDifference, Difference, Latency
from keras_gates.deployment.runners import shared
from keras_gates.deployment.streaming import AT_END, OVER_TIME
from keras_gates.diagnostics.finite import not_finite

RUNNERS = pathlib.Path(shared.__file__).parent
# Calls per figure of latency.
REPETITIONS = 20
# Outputs below this are compared as if they were as large.
_SMALLEST_SCALE = 1e-3
# Of the share of an output's scale by which a file may differ, per dtype of computation.
_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
TOLERANCE = 1e-5
# A difference up to here may be rounding that a chaotic model amplifies from step to step.
_AMPLIFIED = 1e-2
# And any where sequences of so many steps agree.
SHORT = 7
_log = logging.getLogger("keras_gates")
_AMPLIFIES = (
    " If diagnostics.diagnose finds a positive Lyapunov exponent, the model amplifies rounding "
    "from step to step, and no two programs agree on long sequences: give a `tolerance`."
)


def verify(format, path, samples, stream=None, tolerance=None, advance=lambda: None):
    """Runs a file and its model on the same samples, and measures both.

    Args:
        format: name of the format and of its runner.
        path: of the file.
        samples: `Samples`.
        stream: the `Stream` that the file's signatures "step" and "chunk" are of, if it has any.
        tolerance: the largest accepted difference, as a share of the largest value of an output;
            None for any.
        advance: is called when the file has been run, and when it has been compared.

    Returns:
        The largest `Difference`, the list of `Sample`s, a list of `Latency`s, and one of a
        `DataDifference` per output, on data of the user's.

    Raises:
        ParityError: file and model disagree, or the file does not run.
    """
    listed = [*samples.whole(), *samples.streamed(), *samples.given()]
    compared = {f"{s.mode}/{i}": s for i, s in enumerate(listed)}
    timed = {f"latency/{i}": s for i, s in enumerate(samples.timed())}
    calls = {
        f"{label}.{part}": samples.by_name(sample, part)
        for label, sample in {**compared, **timed}.items()
        for part in samples.parts(sample)
    }
    _log.info("running the file in a process of its own, on %d samples", len(compared))
    found = run(format, path, calls)
    advance()
    _log.info("running the model on the same samples, and comparing")
    pairs, data = [], []
    with _keeping_states(samples.spec):
        for label, sample in compared.items():
            for part in samples.parts(sample):
                masks = {} if sample.given is None else _masks(samples, sample, part)
                for call, name, expected in _expected(sample, samples, stream, part):
                    given = found[f"{label}.{part}/{call}/{name}"]
                    pairs.append((sample, name, expected, given))
                    if sample.given is not None:
                        data.append((name, expected, given, masks.get(name)))
        latency = [
            Latency(
                "serving_default",
                sample.batch,
                sample.length,
                _median(found[f"{label}.0/seconds"]),
                _median(_seconds_of_model(samples, sample)),
            )
            for label, sample in timed.items()
        ]
    for label, sample in compared.items():
        if sample.mode == "step":
            seconds = found[f"{label}.0/seconds"][1:]
            latency.append(Latency("step", sample.batch, 1, _median(seconds), None))
            break
    difference = compare(pairs, tolerance)
    advance()
    if difference.relative > (np.inf if tolerance is None else tolerance):
        short = [pair for pair in pairs if pair[0].length <= SHORT]
        grows = bool(short) and compare(short).relative <= tolerance
        rounding = tolerance == TOLERANCE and (grows or difference.relative < _AMPLIFIED)
        raise ParityError(
            f"the file differs from its model by {difference.absolute:.3g}, which is "
            f"{difference.relative:.3g} of the scale of its output {difference.output!r} and more "
            f"than the tolerance {tolerance:.3g}: {difference.sample}."
            + (_AMPLIFIES if rounding else "")
        )
    return difference, list(compared.values()), latency, on_data(data)


def refuse_not_finite(spec, argument, arrays):
    """Raises a ValueError where data, a flat list of arrays, have NaN or infinities of which the
    model makes outputs that are no numbers: there is nothing to compare in these."""
    named = dict(zip(spec.names, arrays, strict=True))
    bad = not_finite(argument, named if len(named) > 1 else arrays[0])
    if bad is None:
        return
    tried = np.resize(bad.tried, spec.inputs[0].shape[0] or len(bad.tried))
    given = [value[tried] for value in arrays]
    with _keeping_states(spec):
        outputs = [_array(value) for value in tree.flatten(spec.model(spec.pack(given)))]
    if not_finite("outputs", outputs):
        raise bad.error()


def run(format, path, calls):
    """What the runner of a format finds.

    Args:
        format: name of the format.
        path: of the file.
        calls: from "<mode>/<number>" to the inputs by name.

    Returns:
        Arrays by the names that `keras_gates.deployment.runners.shared` describes.

    Raises:
        ParityError: the file does not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = pathlib.Path(folder, "in.npz"), pathlib.Path(folder, "out.npz")
        np.savez(given, **{f"{c}/{n}": v for c, inputs in calls.items() for n, v in inputs.items()})
        command = [RUNNERS / f"{format}.py", path.resolve(), given, found, "--repeat", REPETITIONS]
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
            check=False,
        )
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise ParityError(f"the file does not run in a process without keras_gates:\n{last}")
        with np.load(found) as arrays:
            return dict(arrays)


def compare(pairs, tolerance=None):
    """The largest difference.

    Args:
        pairs: a list of (sample, name of an output, what the model gave, what the file gave).
        tolerance: to be noted in the result.

    Raises:
        ParityError: there is nothing to compare, or one is finite where the other is not.
    """
    scales = {}
    for _, name, expected, _ in pairs:
        finite = np.abs(expected[np.isfinite(expected)])
        if finite.size:
            scales[name] = max(scales.get(name, _SMALLEST_SCALE), finite.max())
    worst = None
    for sample, name, expected, given in pairs:
        if name not in scales:
            raise ParityError(
                f"there is nothing to compare: all values of the model's output {name!r} are NaN "
                "or infinite. Give `sample`, finite data that the model is made for."
            )
        if given.shape != expected.shape:
            raise ParityError(
                f"the file's output {name!r} has the shape {given.shape} where the model's has "
                f"{expected.shape}: {sample}."
            )
        given = given.astype(expected.dtype)
        with np.errstate(invalid="ignore"):
            absolute = np.where(given == expected, 0.0, np.abs(given - expected))
        absolute = np.where(np.isnan(given) & np.isnan(expected), 0.0, absolute)
        apart = ~np.isfinite(absolute)
        if apart.any():
            raise ParityError(
                f"the file's output {name!r} is {given[apart][0]} where the model's is "
                f"{expected[apart][0]}, in {apart.sum()} of {apart.size} values: {sample}."
            )
        absolute = float(absolute.max(initial=0.0))
        relative = absolute / float(scales[name])
        if worst is None or relative > worst.relative:
            worst = Difference(absolute, relative, tolerance, name, str(sample))
    return worst


def on_data(data):
    """How far the file is from its model on the user's data: a `DataDifference` per output.

    Args:
        data: a list of (name of an output, what the model gave, what the file gave, the mask of
            the model's or None): masked steps do not count.
    """
    outputs = {}
    for name, expected, given, mask in data:
        if mask is not None and mask.shape == expected.shape[: mask.ndim] and mask.any():
            expected, given = expected[mask], given[mask]
        outputs.setdefault(name, []).append((expected, given))
    return [_on_data(name, *zip(*found, strict=True)) for name, found in outputs.items()]


def _on_data(name, expected, given):
    # Without those that are in both no numbers.
    apart = [abs(g - e)[np.isfinite(e)] for e, g in zip(expected, given, strict=True)]
    apart = np.concatenate(apart)
    found = DataDifference(name, float(apart.max(initial=0.0)), float(apart.mean()))
    if all(map(_are_probabilities, expected)):
        same = [e.argmax(-1) == g.argmax(-1) for e, g in zip(expected, given, strict=True)]
        found.same_class = float(np.concatenate([x.ravel() for x in same]).mean())
    return found


def _are_probabilities(values):
    """Whether they look like those of classes, along the last axis."""
    several = values.ndim > 1 and values.shape[-1] > 1
    # To the precision of a sum in half precision.
    return several and (values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-2)


def default_tolerance(spec):
    """The tolerance for a model: that of the least precise of its layers."""
    dtypes = {layer.compute_dtype for layer in spec.layers}
    return max([TOLERANCE, *(_TOLERANCES.get(dtype, 0) for dtype in dtypes)])


def _expected(sample, samples, stream, part=0):
    """(index of the call, name of an output, its value) of what the file should have given for
    the batch number `part` of a sample."""
    if sample.mode == "whole":
        for name, value in _outputs(samples, sample, part=part).items():
            yield 0, name, value
        return
    sizes = shared.sizes(sample.mode, sample.length)
    ends = np.cumsum(sizes)
    _reset_states(samples.spec)
    whole = _outputs(samples, sample, part=part)
    for name, kind in stream.outputs.items():
        for call, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            if kind == OVER_TIME:
                steps = end - 1 if sample.mode == "step" else slice(end - size, end)
                yield call, name, whole[name][:, steps]
            elif kind != AT_END or end == sample.length:
                yield call, name, whole[name]
            elif samples.spec.all_lengths and call % 5 == 2 and sample.given is None:
                # As if the sequence ended here.
                _reset_states(samples.spec)
                yield call, name, _outputs(samples, sample, end)[name]


def _outputs(samples, sample, length=None, part=0):
    """What the model gives, by name."""
    model = samples.spec.model
    given = samples.spec.pack(samples.values(sample, length, part))
    if any(isinstance(layer, keras.layers.TimeDistributed) for layer in samples.spec.layers):
        # Keras' graph of it is wrong where neither the batch size nor the length is known.
        found = model(given)
    else:
        found = model.predict_on_batch(given)
    values = [_array(value) for value in tree.flatten(found)]
    return dict(zip(output_names(model, found), values, strict=True))


def _masks(samples, sample, part):
    """Which steps of the outputs are valid, by name; None of those without a mask."""
    if samples.spec.stateful:  # whose states another call would carry on
        return {}
    model = samples.spec.model
    found = model(samples.spec.pack(samples.values(sample, None, part)), training=False)
    masks = [get_keras_mask(tensor) for tensor in tree.flatten(found)]
    masks = [None if m is None else keras.ops.convert_to_numpy(m).astype(bool) for m in masks]
    return dict(zip(output_names(model, found), masks, strict=True))


def _array(value):
    """In a dtype that NumPy subtracts in."""
    value = keras.ops.convert_to_numpy(value)
    return value.astype("float64" if value.dtype == "float64" else "float32")


def _seconds_of_model(samples, sample):
    model, given = samples.spec.model, samples.spec.pack(samples.values(sample))
    model.predict_on_batch(given)  # traces
    begun = time.perf_counter()
    seconds = []
    while len(seconds) < REPETITIONS and time.perf_counter() - begun < shared.MOST_SECONDS:
        start = time.perf_counter()
        model.predict_on_batch(given)
        seconds.append(time.perf_counter() - start)
    return seconds


def _median(seconds):
    return 1e3 * float(np.median(seconds))


@contextlib.contextmanager
def _keeping_states(spec):
    """Gives stateful layers their states back at the end."""
    kept = [(state, keras.ops.convert_to_numpy(state)) for state in _states(spec)]
    try:
        yield
    finally:
        for state, value in kept:
            state.assign(value)


def _reset_states(spec):
    for state in _states(spec):
        state.assign(keras.ops.zeros_like(state))


def _states(spec):
    for layer in spec.stateful:
        if isinstance(layer, keras.layers.RNN):
            yield from tree.flatten(layer.states)
