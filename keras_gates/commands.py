"""What the subcommands of `keras-gates` do, each a function of its arguments.

They return what is to be printed, or an exit status. `keras_gates_command` reads the arguments.
"""

import contextlib
import importlib
import json
import logging
import re
import warnings
import zipfile

import h5py
import keras
import numpy as np

from keras_gates.cells import CELLS
from keras_gates.cells.arguments import refuse_given
from keras_gates.deployment.errors import NotExportableError, ParityError
from keras_gates.initializers import Chrono
from keras_gates.validation import close_matches, invalid
from keras_gates.verdicts import check_activations

# What a user can mend, beside errors that Python has names for: shown without a traceback.
ERRORS = (NotExportableError, ParityError)
_log = logging.getLogger("keras_gates")


def check(given):
    for_figures = {"steps": given.steps, "units": given.units}
    chosen = {name: value for name, value in for_figures.items() if value is not None}
    return check_activations(_cell(given.cell), **{**_chosen(given), **chosen})


def export(given):
    from keras_gates.deployment import core

    model = _load(given, compile=False)
    data = {}
    for name in ("sample", "representative_data"):
        if getattr(given, name) is not None:
            data[name], *_ = _data(given, name, model)
    return core.export(
        model,
        given.path,
        given.format,
        streaming=given.streaming,
        tolerance=given.tolerance,
        batch_size=given.batch_size,
        quantize=given.quantize,
        length=given.length,
        opset=given.opset,
        verbose=0,
        **data,
    )


def inspect(given):
    from keras_gates import deployment

    _import(given.modules)
    if given.path.lower().endswith(".keras"):
        return deployment.inspect_keras(given.path)
    _log.info("reading %s", given.path)
    return deployment.inspect(given.path)


def diagnose(given):
    from keras_gates import html
    from keras_gates.diagnostics.data import samples
    from keras_gates.diagnostics.diagnosis import of_some

    if given.html is not None:
        html.check_path(given.html, "html")
    model = _load(given)
    x, y, weights = _data(given, "data", model)
    if y is not None and not model.compiled:
        _log.warning("y is left out: the model was saved without a loss")
        y = weights = None
    _log.info("running the model on %d samples", min(samples(x), given.samples))
    found = of_some(model, x, y, given.samples, weights, batch_size=given.batch_size)
    if given.html is not None:
        _log.info("writing %s", given.html)
        found.to_html(given.html)
    return found


def search(given):
    from keras_gates.tuning import launch

    if given.worker is not None:
        launch.work(given.script, given.arguments, given.workers, given.worker)
    else:
        launch.launch(given.script, given.arguments, given.workers)
    return 0


def bench(given):
    from keras_gates import timing

    chosen = _chosen(given)
    own = ("cell", "units", "batch", "steps", "features", "rounds")
    refuse_given("`--with`", chosen, own, "bench is given it by itself")
    return timing.compare(
        _cell(given.cell),
        given.units,
        batch=given.batch,
        steps=given.steps,
        features=given.features,
        rounds=given.rounds,
        **chosen,
    )


def _cell(name):
    """The name of a cell, or the class that module:Class stands for."""
    module, colon, attribute = name.partition(":")
    if name in CELLS:
        return name
    if not colon:
        known = ", ".join(map(repr, CELLS))
        expected = f"one of {known}, or module:Class for one of your own, such as my_module:MyCell"
        raise invalid("cell", expected, name, close_matches(name, CELLS))
    found = _imported("cell", module)
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        classes = [each for each, value in vars(found).items() if isinstance(value, type)]
        hint = close_matches(part, classes)
        raise invalid("cell", "module:Class", name, f"; {error}{hint}") from None
    return found


def _chosen(given):
    """The arguments of the cell."""
    _import(given.modules)
    chosen = dict(given.others)
    for name in ("candidate_activation", "output_activation"):
        if getattr(given, name) is not None:
            chosen[name] = getattr(given, name)
    gates = [text.rpartition("=") for text in given.gate_activation]
    if len(gates) == 1 and not gates[0][0]:
        chosen["gate_activation"] = gates[0][2]
    elif gates:
        if not all(gate for gate, _, _ in gates):
            raise ValueError(
                "`gate_activation` must be one activation, or GATE=ACTIVATION for each gate. "
                f"Received: gate_activation={' '.join(given.gate_activation)}"
            )
        chosen["gate_activation"] = {gate: activation for gate, _, activation in gates}
    start = re.fullmatch(r"([\w.]+\.)?Chrono\((\d+)\)", str(chosen.get("initialization")))
    if start:  # as verdicts suggest it
        chosen["initialization"] = Chrono(int(start[2]))
    return chosen


def _load(given, compile=True):
    _import(given.modules)
    _log.info("loading %s", given.model)
    if _saved_by_keras2(given.model):
        from keras_gates.convert import load_keras2

        return load_keras2(given.model)
    try:
        with warnings.catch_warnings():
            # Of a model that was never trained; nothing is trained here.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return keras.saving.load_model(given.model, compile=compile)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"`model` is not a .keras file, or damaged: {error}. Received: model={given.model!r}"
        ) from error
    except (TypeError, ValueError) as error:
        # Between the configs of all that it is in, and its own.
        reason = str(error).rpartition("Exception encountered: ")[2]
        reason = reason.partition("Full object config")[0].strip()
        _, of_unknown, name = reason.partition("Could not locate")
        if not of_unknown and not isinstance(error, TypeError):
            raise
        raise ValueError(
            f"{given.model} cannot be loaded; if it holds cells or functions of your own, name the "
            f"module that registers them: --import my_module. Keras says: "
            f"{of_unknown}{name or reason}"
        ) from error


def _saved_by_keras2(path):
    version = ""
    if zipfile.is_zipfile(path):
        with contextlib.suppress(KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    elif h5py.is_hdf5(path):
        with h5py.File(path) as file:
            version = file.attrs.get("keras_version", "")
    return version.startswith("2")


def _import(modules):
    for module in modules:
        _imported("modules", module)


def _imported(argument, module):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"`{argument}` must be a module that can be imported. Received: {argument}={module}; "
            f"{error}"
        ) from error


def _data(given, argument, model):
    """(x, y, sample_weight) from a file; None for what is not there."""
    path = getattr(given, argument)
    _log.info("reading %s", path)
    try:
        loaded = np.load(path)
        if isinstance(loaded, np.ndarray):
            return loaded, None, None
        with loaded:
            found = dict(loaded)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`{argument}` is damaged. Received: {argument}={path!r}; NumPy says: {error}"
        ) from error
    names = _input_names(model)
    given.check_names(argument, path, found, names)
    y, weights = found.pop("y", None), found.pop("sample_weight", None)
    by_name = bool(names) and set(names) <= set(found)
    x = {name: found.pop(name) for name in names} if by_name else found.pop("x")
    if found:
        _log.warning("%s holds %s too, which is left out", path, ", ".join(found))
    return x, y, weights


def _input_names(model):
    from keras_gates.deployment.names import functional

    graph = functional(model)
    return [] if graph is None else [tensor.name for tensor in graph.inputs]
