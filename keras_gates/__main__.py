"""The command line: write models as files that run elsewhere, look into files and models.

    python -m keras_gates export model.keras served_model --streaming
    python -m keras_gates export model.keras model.onnx --format onnx --sample data.npz
    python -m keras_gates export model.keras model.tflite --format litert --quantize int8
    python -m keras_gates inspect model.onnx
    python -m keras_gates diagnose model.keras data.npz

Each prints what the function of its name in keras_gates.deployment or keras_gates.diagnostics
returns.
"""

import argparse
import importlib
import json
import pathlib
import sys
import zipfile

import keras
import numpy as np

from keras_gates.deployment import core
from keras_gates.deployment.errors import NotExportableError, ParityError
from keras_gates.deployment.names import functional
from keras_gates.diagnostics import diagnose
from keras_gates.diagnostics.data import samples, take
from keras_gates.validation import positive_integer

# What a user can mend is shown without a traceback.
_MENDABLE = (
    ImportError,
    NotExportableError,
    NotImplementedError,
    OSError,
    ParityError,
    TypeError,
    ValueError,
)
_DATA = (
    "a .npz file with the arrays x and y, or with one array per input under the names of the "
    "model's inputs, and y; or a .npy file with x alone"
)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m keras_gates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name, run, text):
        examples = [line for line in __doc__.splitlines() if f"keras_gates {name} " in line]
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog="\n".join(["examples:", *(line[2:] for line in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print JSON")
        return command

    def add_model(command):
        command.add_argument("model", help="a .keras file")
        command.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="import it first: the one that registers the model's own cells and functions",
        )

    command = add("export", _export, "write a model as a file that runs without keras_gates")
    add_model(command)
    command.add_argument("path", help="where to; the format's suffix is added if it is missing")
    command.add_argument(
        "--format", choices=core.FORMATS, default=core.FORMATS[0], help="default: %(default)s"
    )
    command.add_argument(
        "--streaming", action="store_true", help="add signatures for live data, step by step"
    )
    command.add_argument(
        "--sample", metavar="DATA", help=f"data to compare file and model on: {_DATA}"
    )
    command.add_argument(
        "--tolerance", type=float, help="largest difference, as a share of an output's scale"
    )
    command.add_argument("--batch-size", type=int, help="litert: the fixed batch size; default: 1")
    command.add_argument("--quantize", help="litert: int8, for weights as 8-bit integers")

    command = add("inspect", _inspect, "show signatures, operators and size of a written file")
    command.add_argument("path", help="the file, or the folder of a SavedModel")

    command = add("diagnose", _diagnose, "show what happens inside of a model's recurrent layers")
    add_model(command)
    command.add_argument("data", help=f"{_DATA}; with y the gradients are looked at too")
    command.add_argument(
        "--samples", type=int, default=256, help="at most so many, at random; default: %(default)s"
    )
    command.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the command; returns the exit status."""
    arguments = parse_arguments(argv)
    try:
        report = arguments.run(arguments)
    except _MENDABLE as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)
    return 0


def _export(given):
    model = _load(given, compile=False)
    sample = None
    if given.sample is not None:
        sample, _ = _data("--sample", given.sample, model)
    return core.export(
        model,
        given.path,
        given.format,
        streaming=given.streaming,
        sample=sample,
        tolerance=given.tolerance,
        batch_size=given.batch_size,
        quantize=given.quantize,
    )


def _inspect(given):
    return core.inspect(given.path)


def _diagnose(given):
    model = _load(given)
    x, y = _data("data", given.data, model)
    most = positive_integer("--samples", given.samples)
    if y is not None and not model.compiled:
        print("y is left out: the model was saved without a loss.", file=sys.stderr)
        y = None
    count = samples(x)
    if most < count:
        chosen = np.sort(np.random.default_rng(0).permutation(count)[:most])
        x, y = take(x, chosen), take(y, chosen)
    return diagnose(model, x, y, batch_size=given.batch_size)


def _load(given, compile=True):
    for module in given.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"--import {module}: {error}") from error
    try:
        return keras.saving.load_model(given.model, compile=compile)
    except TypeError as error:  # of a class or function that Keras cannot find
        # Between the configs of all that it is in, and its own.
        reason = str(error).rpartition("Exception encountered: ")[2]
        reason = reason.partition("Full object config")[0].strip()
        raise ValueError(
            f"{given.model} cannot be loaded; if it holds cells or functions of your own, name the "
            f"module that registers them: --import my_module. Keras says: {reason}"
        ) from error


def _data(argument, path, model):
    """(x, y) from a file; y is None if there is none."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{argument}: there is no file {path!r}")
    try:
        loaded = np.load(path)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            found = dict(loaded)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{argument}: {path!r} must be {_DATA}. NumPy says: {error}") from error
    y, names = found.get("y"), _input_names(model)
    if names and set(names) <= set(found):
        return {name: found[name] for name in names}, y
    if "x" in found:
        return found["x"], y
    raise ValueError(
        f"{argument}: {path!r} must hold the array x, or {', '.join(names) or 'x'}. Received: "
        f"{', '.join(found)}"
    )


def _input_names(model):
    graph = functional(model)
    return [] if graph is None else [tensor.name for tensor in graph.inputs]


if __name__ == "__main__":
    sys.exit(main())
