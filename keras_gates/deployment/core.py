"""`export` and `inspect`: one call per file, whatever its format."""

import importlib
import logging
import os
import pathlib
from typing import Any, Literal, Unpack, get_args

import keras

from keras_gates.cells.arguments import sign
from keras_gates.deployment.errors import ParityError
from keras_gates.deployment.place import atomic_write
from keras_gates.deployment.report import ExportReport
from keras_gates.deployment.samples import Samples
from keras_gates.deployment.spec import ModelSpec
from keras_gates.deployment.streaming import Stream
from keras_gates.deployment.verify import default_tolerance, refuse_not_finite, verify
from keras_gates.diagnostics import weights
from keras_gates.diagnostics.data import check_model
from keras_gates.progress import bar, check_verbose
from keras_gates.types import Format, NoArguments, Verbose
from keras_gates.validation import close_matches, one_of, positive_number, true_or_false

FORMATS = get_args(Format)
# In which module of this package each is, and its class there.
_CLASSES = {"saved_model": "SavedModel", "onnx": "ONNX", "litert": "LiteRT", "openvino": "OpenVINO"}
_SUFFIXES = {".onnx": "onnx", ".tflite": "litert", ".xml": "openvino"}
# Of files that a folder is easily taken for, and what writes those.
_OTHERS = {
    ".keras": ", and model.save(path) writes a .keras file",
    ".h5": ", and model.save_weights(path) writes a .weights.h5 file",
    ".pb": ", which saved_model.pb is in",
}
# That of a temporary folder beside it is longer.
_LONGEST_NAME = 200
_OPTIONS = (
    "batch_size",
    "quantize",
    "representative_data",
    "length",
    "opset",
)  # named in the signature of `export`
_SAVED_MODEL = "saved_model.pb"  # what tells that a folder is one
STEPS = 3  # to write a file, to run it, and to compare it with its model
_log = logging.getLogger("keras_gates")


def export(
    model: keras.Model,
    path: str | os.PathLike,
    format: Format | None = None,
    *,
    streaming: bool = False,
    sample: Any = None,
    tolerance: float | None = None,
    batch_size: int | None = None,
    quantize: Literal["int8", "float16", "full_int8", "int16x8"] | None = None,
    representative_data: Any = None,
    length: int | None = None,
    opset: int | None = None,
    verbose: Verbose = "auto",
    **unknown: Unpack[NoArguments],
) -> ExportReport:
    """Writes a model as a file that runs without this package, and compares the two.

    The file is written under another name, run in another process in which keras_gates cannot be
    imported, on samples of several batch sizes, lengths and, where the model makes masks, paddings,
    and moved to its place if it agrees with the model. If anything fails, nothing new is left
    behind and an older file is kept.

    Args:
        model: a built Keras model.
        path: where to; the suffix of the format is added if it is missing. An older file there
            is replaced, as the report says then, the folder of an older SavedModel too unless
            something else is in it.
        format: "saved_model" (a folder), "onnx", "litert" or "openvino". Default: that of the
            suffix of `path`, ".onnx", ".tflite" or ".xml", and else "saved_model", unless the
            suffix is nearly one of these.
        streaming: whether to add signatures for live data: `initial_state` (batch_size to
            states), `step` (one time step and states to outputs and states) and `chunk` (the same
            for some time steps). States are the caller's to keep, so that streams can be
            interleaved. An "onnx" or "openvino" file has one graph, which is `chunk` then: states
            come out as "<name>_next", and begin with zeros, or with what was learned, see
            docs/deploy/live.md.
        sample: data to compare with: an array, or a list or dict of arrays (by the names of the
            model's inputs), with the samples along the first axis. Up to 256 are compared, evenly
            spaced, fewer of more than 128 steps; the first of them in several batch sizes and
            lengths, too. Default: `representative_data`, or random numbers.
        tolerance: the largest accepted difference, as a share of the largest value of an output.
            Default: 1e-5; more for a model that computes in half precision; any for a quantized
            file, whose report tells what it costs.
        batch_size: of "litert" alone, where it is fixed. Default: 1, or that of a stateful model.
        quantize: of "litert" alone: "int8" for weights as 8-bit integers, "float16" for weights in
            half precision, "full_int8" for integers throughout, "int16x8" for the same with
            activations of 16 bits.
        representative_data: for the last two, as `sample`: data that the ranges of all values are
            taken from. Up to 100 samples are.
        length: of "litert" alone: a fixed number of time steps, which are written out one after the
            other; for the last two, and for devices that know no loops.
        opset: of "onnx" alone, the version of ONNX's operators, 13 to 17. Default: 15.
        verbose: 1 for a bar of what is done, written, run and compared, 0 for none; "auto" for one
            on a terminal and in a notebook. The logger "keras_gates" says the same in words.

    Returns:
        An `ExportReport`: what was written, and how it compares with the model.

    Raises:
        NotExportableError: the format cannot hold the model, with the layer and the reason.
        ParityError: the file does not run or differs from the model; nothing is left of it.
        ValueError: an argument out of its range, a `path` that is something else, a model with
            weights that are NaN or infinite, or data with such values of which it makes others.
        TypeError: `model` is no Keras model, `path` is no path, or an option that the format has
            not.
        PermissionError: the folder that `path` is in cannot be written to.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((None, 3)), keras_gates.GatedRNN(4)])
    >>> report = keras_gates.export(model, tempfile.mkdtemp())
    >>> report.difference.relative < 1e-5
    True
    """
    check_model(model)
    name: str | None = format
    if name is None:
        _check_path(path)
        name = _of_suffix(path)
    chosen = _format(one_of("format", name, FORMATS))
    true_or_false("streaming", streaming)
    check_verbose(verbose)
    given = {
        "batch_size": batch_size,
        "quantize": quantize,
        "representative_data": representative_data,
        "length": length,
        "opset": opset,
        **unknown,
    }
    options = _options(name, chosen, given)
    if tolerance is not None:
        positive_number("tolerance", tolerance, none="the default")
    path = _target(path, chosen, name)
    _check_weights(model)
    spec = ModelSpec(model)
    chosen.check(spec, **{"streaming": True} if streaming else {}, **options)
    for argument, data in (("sample", sample), ("representative_data", representative_data)):
        if data is not None:
            refuse_not_finite(spec, argument, spec.data(data, argument))
    if sample is None:
        sample = representative_data  # what the ranges are taken from says most of what they cost
    spec.data(sample)
    if tolerance is None and not options.get("quantize"):
        tolerance = default_tolerance(spec)
    if streaming:
        options["stream"] = Stream(spec)
    replaced = bool(chosen.files(path))
    with bar(STEPS, verbose) as advance, atomic_write(path) as beside:
        _log.info("writing %s as %s", path, name)
        written = chosen.write(spec, beside, **options)
        size = _size(chosen, beside)
        advance()
        samples = Samples(spec, sample, written.signatures, chosen.interior_masks)
        try:
            found = verify(name, beside, samples, options.get("stream"), tolerance, advance)
        except ParityError as error:
            raise ParityError(
                f"{model.name!r} as {name}: {error} Nothing was written to {path}."
            ) from error
    notes = [*_notes_on_masks(spec), *written.notes]
    of_file = written.signatures, written.operators, notes
    report = ExportReport(str(path), name, size, *of_file, *found)
    report.replaced = replaced
    return report


sign(export)


def inspect(path: str | os.PathLike) -> ExportReport:
    """What is in a written file: its signatures, operators and size.

    Args:
        path: of the file, or of the folder of a SavedModel.

    Returns:
        An `ExportReport` without a comparison.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no file of a known format, or one that is damaged.
        TypeError: `path` is no path.
    """
    _check_path(path)
    path = pathlib.Path(path)
    if not os.path.exists(path):  # pathlib raises for a name that no file can have
        raise FileNotFoundError(f"there is no file or folder `path`. Received: path={str(path)!r}")
    format = _format_of(path)
    reader = _format(format)
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"`path` is an empty file. Received: path={str(path)!r}")
    try:
        written = reader.read(path)
    except ImportError:
        raise
    except Exception as error:  # what the readers of the formats raise is of any kind
        raise ValueError(
            f"`path` is not a file of format {format!r}, or damaged: {error}. Received: "
            f"path={str(path)!r}"
        ) from error
    found = written.signatures, written.operators, written.notes
    return ExportReport(str(path), format, _size(reader, path), *found)


def _check_path(path):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be a path. Received: path={path!r}")


def _of_suffix(path):
    """The format of a path; an error where its suffix is one with a typing error, maybe."""
    suffix = os.path.splitext(path)[1].lower()
    # ".tf" stands for a SavedModel in other programs.
    hint = close_matches(suffix, _SUFFIXES, cutoff=0.7)
    if suffix not in _SUFFIXES and (hint or suffix in _OTHERS):
        raise ValueError(
            f"`path` must end in {', '.join(_SUFFIXES)}, or `format` say what it is: "
            f"format='saved_model' writes a folder of any name{_OTHERS.get(suffix, '')}. Received: "
            f"path={os.fspath(path)!r}{hint}"
        )
    return _SUFFIXES.get(suffix, "saved_model")


def _format(name):
    module = importlib.import_module(f"keras_gates.deployment.{name}")
    return getattr(module, _CLASSES[name])()


def _format_of(path):
    if (path / _SAVED_MODEL).exists():
        return "saved_model"
    if path.suffix.lower() in _SUFFIXES and path.is_file():
        return _SUFFIXES[path.suffix.lower()]
    if path.suffix.lower() == ".keras":
        raise ValueError(
            "`path` must be that of an exported file; deployment.inspect_keras tells what is in a "
            f".keras file. Received: path={str(path)!r}"
        )
    raise ValueError(
        f"`path` must be the folder of a SavedModel or a file that ends in {', '.join(_SUFFIXES)} "
        f"or .keras. Received: path={str(path)!r}"
    )


def _options(format, chosen, options):
    """Those that were given; an error for one that the format does not take."""
    known = chosen.options - {"stream"}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in options.items():
        unset = value is None and name in _OPTIONS
        if name not in known and not unset:
            takes = ", ".join(sorted(known)) or "none"
            hint = close_matches(name, {*known, "streaming", "sample", "tolerance", "verbose"})
            raise TypeError(
                f"the format {format!r} takes no option `{name}`; its options: {takes}. "
                f"Received: {name}={value!r}{hint}"
            )
    return given


def _check_weights(model):
    for name, _, value in weights.nonfinite(model):
        raise ValueError(
            f"`model` must have finite weights to be exported. Received: {model.name!r}, in which "
            f"{name!r} has a value of {value}. keras_gates.diagnostics.locate_nonfinite tells "
            "where it came from"
        )


def _notes_on_masks(spec):
    """A sentence for each layer that hides time steps, which who has the file alone cannot see."""
    for layer in spec.layers:
        if isinstance(layer, keras.layers.Masking):
            padding = f"Steps in which all features are {layer.mask_value:g}"
        elif isinstance(layer, keras.layers.Embedding) and layer.mask_zero:
            padding = "Steps of the number 0"
        else:
            continue
        yield f"{padding} are taken as padding, and hidden from what follows ({layer.name})."


def _target(path, chosen, format):
    """Where the file goes; an error if that would destroy something else."""
    suffix = next(iter(chosen.suffixes), "")
    _check_path(path)
    name = os.path.basename(path)
    if name in ("", os.curdir, os.pardir) and (suffix or not str(path)):
        raise ValueError(f"`path` must end with the name of a file. Received: path={str(path)!r}")
    path = pathlib.Path(path).absolute()
    if "\0" in str(path) or len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ValueError(
            f"`path` must end with a name that a file can have, of at most {_LONGEST_NAME} bytes. "
            f"Received: path={str(path)!r:.300}"
        )
    other = _SUFFIXES.get(path.suffix.lower(), format)
    if other != format:
        raise ValueError(
            f"`path` ends as a file of format {other!r} does, and `format` is {format!r}: give "
            f"format={other!r}, or another path. Received: path={str(path)!r}"
        )
    if not path.name.lower().endswith(suffix):
        path = path.with_name(path.name + suffix)
    if not path.parent.is_dir():
        raise ValueError(f"the folder that `path` is in must exist. Received: path={str(path)!r}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"the folder that `path` is in must be one that you can write to. Received: "
            f"path={str(path)!r}"
        )
    if suffix:
        fits = not path.is_dir()
    else:
        is_folder = path.is_dir() and not path.is_symlink()
        fits = not path.exists() or (
            is_folder and ((path / _SAVED_MODEL).exists() or not any(path.iterdir()))
        )
    if not fits:
        raise ValueError(
            f"`path` holds something other than a file of format {format!r}, and is not "
            f"overwritten. Received: path={str(path)!r}"
        )
    places = {file for file in chosen.places(path) if file.exists()}
    if others := places - chosen.files(path):
        # Relative to the folder of a SavedModel, else by their names.
        names = [str(file.relative_to(path if path.is_dir() else path.parent)) for file in others]
        raise ValueError(
            f"`path` holds what is not of format {format!r} and would be lost, "
            f"{', '.join(map(repr, sorted(names)))}: move it away, or take another path. "
            f"Received: path={str(path)!r}"
        )
    return path


def _size(format, path):
    """In bytes, of all files that belong to it."""
    return sum(file.stat().st_size for file in format.files(path))
