"""What the command line takes. Only the standard library is needed to say it."""

import argparse
import ast
import difflib
import importlib.util
import math
import os
import re
import runpy
import sys

from keras_gates_command import files

_DATA = (
    "a .npz file with the arrays x and y, or with one array per input under the names of the "
    "model's inputs, and y; with sample_weight too, if there are any; or a .npy file with x alone"
)
# How messages name what there is in Python alone, and what it is here.
_IN_PYTHON = {
    ", a function or a Keras layer, or a dict of these per gate": ", or GATE=ACTIVATION for each",
    ", a function or a Keras layer": "",
}
_CELL = 'the name of a cell ("gru", "lstm", ...), or module:Class of your own'


def parse(text, argv=None):
    """The arguments of the command whose description, with an example of each, is `text`."""
    parser = argparse.ArgumentParser(
        prog="keras-gates",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_check, _export, _inspect, _diagnose, _search, _bench):
        name = add.__name__[1:]
        summary, *more = add.__doc__.splitlines()
        examples = [line[2:] for line in text.splitlines() if f"keras-gates {name} " in line]
        command = commands.add_parser(
            name,
            help=f"{summary[0].lower()}{summary[1:-1]}",
            description="\n".join([summary, *map(str.strip, more)]),
            epilog="\n".join(["examples:", *examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name != "search":  # whose script prints what it prints
            command.add_argument("--json", action="store_true", help="print JSON")
            command.add_argument(
                "--quiet", action="store_true", help="do not say on stderr what is being done"
            )
        command.set_defaults(
            needs_backend=lambda given: True,
        )
        add(command)
        command.set_defaults(
            options={a.dest: a.option_strings[0] for a in command._actions if a.option_strings}
        )
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        command = commands.choices[given.command]
        command.error(f"unrecognized arguments: {' '.join(unknown)}{_near(unknown, command)}")
    return given


def _near(unknown, command):
    """The options of a command that those may stand for which it does not know."""
    names = [name.partition("=")[0] for name in unknown if name.startswith("--")]
    known = [name for name in command._option_string_actions if name not in ("-h", "--help")]
    near = [
        [name for name in known if given.startswith(name)]  # --gate-activation
        or difflib.get_close_matches(given, known, 1)
        for given in names
    ]
    found = [name for each in near for name in each[:1]]
    return f"; did you mean {' and '.join(found)}?" if found else ""


def in_terms_of_options(given, message):
    """An error of a function of keras_gates, with its arguments as they are called here."""
    for name, option in given.options.items():
        if isinstance(getattr(given, name, None), bool):  # a flag, which takes no value
            message = message.replace(f" {name}=True", f" {option}")
        for before, after in ("`", "`"), ("`", "["), (" ", "["), (" ", "="):
            message = message.replace(before + name + after, before + option + after)
    for in_python, here in _IN_PYTHON.items():
        message = message.replace(in_python, here)
    message = re.sub(r"--gate\['(\w+)'\]", r"--gate \1", message)
    message = re.sub(r"--gate=(\{[^}]*\})", _one_by_one, message)
    if hasattr(given, "cell"):
        cells = getattr(sys.modules.get("keras_gates.cells"), "CELLS", {})
        names = {cell.__name__: name for name, cell in cells.items()}
        message = re.sub(r"(?<!['.:\w])\w+Cell\b", lambda m: names.get(m[0], m[0]), message)
    return message


def _one_by_one(match):
    """`--gate=` with a dict as one option for each gate."""
    try:
        gates = ast.literal_eval(match[1])
    except (SyntaxError, ValueError):  # objects in it
        return match[0]
    return " ".join(f"--gate {gate}={activation}" for gate, activation in gates.items())


# ---------------------------------------------------------------------- the commands


def _check(command):
    """Say whether a choice of activations will work in a cell, before training."""
    _add_cell(command)
    command.add_argument(
        "--steps",
        type=_count,
        help="how long sequences are, for what is left of a difference; default: 64",
    )
    command.add_argument(
        "--units", type=_count, help="of the cell that the figures are of; default: 64"
    )
    command.set_defaults(
        needs_backend=lambda given: ":" in given.cell or bool(given.modules),
    )


def _export(command):
    """Write a model as a file that runs without keras_gates, and compare the two."""
    _add_model(command)
    command.add_argument("path", help="where to: its suffix says in which format, see --format")
    command.add_argument(
        "--format",
        choices=("saved_model", "onnx", "litert", "openvino"),
        help="default: that of the suffix .onnx, .tflite or .xml, and else saved_model, which is a "
        "folder",
    )
    command.add_argument(
        "--streaming", action="store_true", help="add signatures for live data, step by step"
    )
    command.add_argument(
        "--sample", metavar="DATA", help=f"data to compare file and model on: {_DATA}"
    )
    command.add_argument(
        "--tolerance",
        type=_positive,
        help="largest difference, as a share of an output's scale; default: 1e-5, more for half "
        "precision, any for quantized files",
    )
    command.add_argument(
        "--batch-size", type=_count, help="litert: the fixed batch size; default: 1"
    )
    command.add_argument(
        "--quantize",
        choices=("int8", "float16", "full_int8", "int16x8"),
        help="litert: int8 or float16 for weights, full_int8 or int16x8 for all",
    )
    command.add_argument(
        "--representative-data",
        metavar="DATA",
        help="litert: for full_int8 and int16x8, data as of --sample that ranges are taken from",
    )
    command.add_argument(
        "--length", type=_count, help="litert: a fixed number of time steps, written out"
    )
    command.add_argument(
        "--opset", type=_count, help="onnx: the version of its operators; default: 15"
    )
    command.set_defaults(check_names=files.check_names)


def _inspect(command):
    """Show what is in a file: layers and cells of a .keras file, signatures of an exported one."""
    command.add_argument(
        "path", help="a .keras, .onnx, .tflite or .xml file, or the folder of a SavedModel"
    )
    _add_import(command, "the classes in a .keras file, whose defaults are left out then")
    command.set_defaults(needs_backend=lambda given: bool(given.modules))


def _diagnose(command):
    """Show what happens inside a model's recurrent layers on data."""
    _add_model(command)
    command.add_argument("data", help=f"{_DATA}; with y the gradients are looked at too")
    command.add_argument(
        "--samples", type=_count, default=256, help="at most so many, at random; default: 256"
    )
    command.add_argument("--batch-size", type=_count, default=32, help="default: 32")
    command.add_argument("--html", metavar="PATH", help="write it as a page too, with pictures")
    command.set_defaults(check_names=files.check_names)


def _search(command):
    """Run a search script in several processes, and keep them alive.

    On several machines, which all see the folder of the search, run each with --worker K: what
    follows `tuner.search(...)` in the script happens in worker 0 alone. The same commands once more
    go on with a search that was broken off.
    """
    command.add_argument(
        "--workers", type=_count, default=2, metavar="N", help="how many processes; default: 2"
    )
    command.add_argument(
        "--worker",
        type=int,
        metavar="K",
        help="run the one with this id alone, from 0; when it is started again, under the same id",
    )
    command.add_argument("script", help="a Python script with one search, the same that runs alone")
    command.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments"
    )
    command.set_defaults(
        needs_backend=lambda given: False,
        json=False,
        quiet=False,
    )


def _bench(command):
    """Measure how long a layer trains and runs here, and what Keras takes for the same."""
    _add_cell(command)
    command.add_argument("--units", type=_count, default=64, help="default: 64")
    command.add_argument("--batch", type=_count, default=32, help="default: 32")
    command.add_argument("--steps", type=_count, default=100, help="time steps; default: 100")
    command.add_argument("--features", type=_count, default=32, help="default: 32")
    command.add_argument(
        "--rounds", type=_count, default=5, help="medians are over so many; default: 5"
    )


def _add_cell(command):
    command.add_argument("cell", help=_CELL)
    command.add_argument(
        "--gate",
        dest="gate_activation",
        action="append",
        default=[],
        metavar="ACTIVATION",
        help="of all gates; or once for each gate, --gate update=relu --gate reset=sigmoid",
    )
    command.add_argument("--candidate", dest="candidate_activation", metavar="ACTIVATION")
    command.add_argument(
        "--output", dest="output_activation", metavar="ACTIVATION", help="of an LSTM"
    )
    command.add_argument(
        "--with",
        dest="others",
        action="append",
        type=_assigned,
        default=[],
        metavar="ARGUMENT=VALUE",
        help="a further argument of the cell, such as grad_clip_norm=1.0 or layer_norm=True",
    )
    _add_import(command, "the activations")


def _add_model(command):
    command.add_argument("model", help="a .keras file, or a model that Keras 2 saved")
    _add_import(command, "the model's own cells and functions")


def _add_import(command, what):
    command.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help=f"import it first: the one that registers {what}",
    )


# ---------------------------------------------------------------------- what arguments must be


class _Version(argparse.Action):
    """Reads the version from its file: importing the package would take seconds."""

    def __call__(self, parser, *_):
        (folder,) = importlib.util.find_spec("keras_gates").submodule_search_locations
        found = runpy.run_path(os.path.join(folder, "_version.py"))
        print(f"keras_gates {found['__version__']}")
        parser.exit()


def check_files(given):
    """An error of what the command line names and is not there, or is something else."""
    if given.command == "search":
        files.check_script("script", given.script)
    for module in getattr(given, "modules", ()):
        files.check_module("modules", module)
    if ":" in (cell := getattr(given, "cell", "")):
        files.check_module("cell", cell.partition(":")[0])
    if given.command == "inspect":
        files.check_there("path", given.path, "file or folder")
    if hasattr(given, "model"):
        files.check_model("model", given.model)
    for name in ("data", "sample", "representative_data"):
        if (path := getattr(given, name, None)) is not None:
            files.check_data(name, path, given.model)


def _count(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text}")
    return int(text)


def _positive(text):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number. Received: {text}")
    return number


def _assigned(text):
    """("name", value) of name=value; what is no Python literal is a string."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be ARGUMENT=VALUE. Received: {text}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value
