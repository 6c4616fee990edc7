"""What all runners share.

    python RUNNER.py ARTIFACT IN.npz OUT.npz [--repeat N]

runs a written file on the inputs in IN.npz, in a process where keras_gates cannot be imported, and
writes what came out. A runner says how its format is loaded; it is a script, run by its path:

    import shared

    def load(path):
        model = ...
        return lambda signature, inputs: ...  # from and to dicts of arrays by name

    shared.run(load)

Keys of IN.npz are "<mode>/<number>/<input>", in the order in which they are run. Modes:

    whole    one call of the signature "serving_default"
    latency  the same N times, for its time alone
    step     states from "initial_state", then "step" for one time step after the other
    chunk    the same with "chunk", for chunks of 1, 2, 3, ... time steps

Where a model that streams has an input without a time axis, the input's name is "static:<name>".
Keys of OUT.npz are "<mode>/<number>/<call>/<output>", and "<mode>/<number>/seconds" per call.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

_SIGNATURES = {"whole": "serving_default", "latency": "serving_default"}
STATIC = "static:"
# Repetitions end after so many seconds: a median of fewer is good enough then.
MOST_SECONDS = 2.0


def run(load, without=()):
    """Runs the file that the command line names.

    Args:
        load: function from the path of a file to `call(signature, inputs)`, which takes and
            returns dicts of arrays by name.
        without: names of further packages that the process has to do without.
    """
    for package in ("keras_gates", *without):
        sys.modules[package] = None
    # The runners are named like the packages that they import.
    here = pathlib.Path(__file__).parent
    sys.path[:] = [path for path in sys.path if pathlib.Path(path or ".").resolve() != here]
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=pathlib.Path)
    parser.add_argument("inputs", type=pathlib.Path)
    parser.add_argument("outputs", type=pathlib.Path)
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    call, found = load(arguments.artifact), {}
    for label, inputs in read(arguments.inputs).items():
        mode = label.split("/")[0]
        if mode in _SIGNATURES:
            calls = repeated(call, inputs, arguments.repeat if mode == "latency" else 1)
        else:
            calls = streamed(call, mode, inputs)
        seconds = []
        for index, (outputs, taken) in enumerate(calls):
            seconds.append(taken)
            if mode != "latency":
                found.update({f"{label}/{index}/{name}": _saved(v) for name, v in outputs.items()})
        found[f"{label}/seconds"] = np.array(seconds)
    np.savez(arguments.outputs, **found)


def read(path):
    """From a label "<mode>/<number>" to the inputs by name."""
    calls = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            mode, number, name = key.split("/", 2)
            calls.setdefault(f"{mode}/{number}", {})[name] = arrays[key]
    return calls


def repeated(call, inputs, most):
    """(outputs, seconds) of so many calls at most; the first call of more is not among them."""
    if most > 1:
        call("serving_default", inputs)
    begun = time.perf_counter()
    for _ in range(most):
        yield timed(call, "serving_default", inputs)
        if time.perf_counter() - begun > MOST_SECONDS:
            return


def streamed(call, mode, inputs):
    """(outputs, seconds) of every step or chunk of a stream."""
    static = {n.removeprefix(STATIC): v for n, v in inputs.items() if n.startswith(STATIC)}
    over_time = {n: v for n, v in inputs.items() if not n.startswith(STATIC)}
    batch, length = next(iter(over_time.values())).shape[:2]
    states = call("initial_state", {"batch_size": np.array(batch, "int32")})
    first = 0
    for size in sizes(mode, length):
        at = first if mode == "step" else slice(first, first + size)
        first += size
        now = {name: value[:, at] for name, value in over_time.items()}
        outputs, seconds = timed(call, mode, {**now, **static, **states})
        states = {name: outputs.pop(name) for name in states}
        yield {**outputs, **states}, seconds


def sizes(mode, length):
    """How many time steps each call of a stream takes."""
    if mode == "step":
        return [1] * length
    found = []
    while rest := length - sum(found):
        found.append(min(len(found) + 1, rest))
    return found


def with_states(call, states, sizes):
    """`call(signature, inputs)` of a file with one graph, whose states are inputs and outputs.

    Args:
        call: from inputs to outputs by name.
        states: JSON, from the name of each state to its first values or None for zeros; None of a
            file without states.
        sizes: from the name of an input to its last axis.
    """
    states = json.loads(states or "{}")

    def called(signature, inputs):
        if signature == "initial_state":
            return {
                name: np.tile(
                    np.float32(np.zeros(sizes[name]) if first is None else first),
                    (int(inputs["batch_size"]), 1),
                )
                for name, first in states.items()
            }
        found = call(inputs)
        return {
            name.removesuffix("_next") if name.removesuffix("_next") in states else name: value
            for name, value in found.items()
        }

    return called


def _saved(value):
    """In a dtype that NumPy can write: bfloat16 is none."""
    return value.astype("float32") if value.dtype.kind == "V" else value


def timed(call, signature, inputs):
    begun = time.perf_counter()
    outputs = call(signature, inputs)
    return outputs, time.perf_counter() - begun
