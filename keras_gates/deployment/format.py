"""What a format of files is, and what it says of one."""

import abc
import dataclasses
import importlib
import inspect

import keras

from keras_gates.deployment.errors import NotExportableError


@dataclasses.dataclass
class Written:
    """A written file, as its format describes it.

    Attributes:
        operators: how often each operator occurs, by name.
        notes: sentences for the reader of the report, such as "gated_rnn runs as a Scan, because
            ONNX has no activation swish".
        signatures: from the name of a signature, the one for whole sequences first
            ("serving_default"), to {"inputs": tensors, "outputs": tensors}, where tensors is a
            dict from a name to {"shape": list with None for what is dynamic, "dtype": name}. The
            first two axes of an input are batch and time.
    """

    operators: dict[str, int]
    notes: list[str]
    signatures: dict[str, dict]


class Format(abc.ABC):
    """One format of files.

    Attributes:
        suffixes: of the files that one model becomes, that of its path first; a folder has none.
        interior_masks: whether it can hold masks other than of padding at the end.
        options: names of what `write` takes beside the model and the path.
    """

    suffixes: tuple[str, ...] = ()
    interior_masks = True

    @property
    def options(self):
        parameters = inspect.signature(self.write).parameters.values()
        return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}

    @abc.abstractmethod
    def check(self, spec, *, streaming=False):
        """Raises NotExportableError if such a file cannot hold the model.

        Args:
            spec: the `ModelSpec`.
            streaming: whether signatures for live data are wanted.
            **options: the format's own, as of `write`.
        """

    @abc.abstractmethod
    def write(self, spec, path, *, stream=None):
        """Writes the model to `path`; see `keras_gates.export`.

        Args:
            spec: the `ModelSpec`.
            path: where to.
            stream: the `Stream` of the model, if signatures for live data are wanted.
            **options: the format's own.

        Returns:
            What was `Written`.
        """

    @abc.abstractmethod
    def read(self, path):
        """What is `Written` in the file `path`."""

    def places(self, path):
        """All files that are replaced when a model is written to `path`."""
        if self.suffixes:
            return {path, *(path.with_suffix(suffix) for suffix in self.suffixes[1:])}
        return {file for file in path.rglob("*") if not file.is_dir()}

    def files(self, path):
        """Those of them that belong to a model that was written there before."""
        return {file for file in self.places(path) if file.exists()}


def refuse_other_backends(files):
    """Raises NotExportableError where such files cannot be written."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise NotExportableError(
            f"{files} files are written by way of TensorFlow, and this is Keras on {backend}. Load "
            "the model with KERAS_BACKEND=tensorflow, and export it there."
        )


def refuse_missing(files, extra, *packages):
    """Raises an ImportError, with the command that installs them, where packages are missing."""
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError as error:
        needed = ", ".join(packages).replace("_", "-")
        raise ImportError(
            f'{files} files need {needed}: pip install "keras_gates[{extra}]"'
        ) from error


def refuse_stateful(spec, files, streaming):
    """Raises NotExportableError for a model with states, unless these are the caller's."""
    for layer in [] if streaming else spec.stateful:
        raise NotExportableError(
            f"{layer.name!r} is stateful, and an {files} file remembers nothing between calls. In "
            "one with streaming=True the states are inputs and outputs. format='saved_model' and "
            "format='litert' keep them."
        )


def refuse_text(spec, files):
    """Raises NotExportableError for a model that reads text."""
    for one in spec.inputs:
        if one.dtype == "string":
            reads = [x.name for x in spec.layers if isinstance(x, _READ_TEXT)] or ["what reads it"]
            raise NotExportableError(
                f"the input {one.name!r} is text, and {files} files are of numbers. Leave "
                f"{reads[0]!r} outside: begin the model that you export with its output, such as "
                "keras.Input((None,), dtype='int64'), and give that model the same layers. "
                "format='saved_model' holds the whole."
            )


_READ_TEXT = (keras.layers.TextVectorization, keras.layers.StringLookup, keras.layers.Hashing)


def refuse_other_precisions(spec, why, allowed=("float32", "float64")):
    """Raises NotExportableError for the first layer that computes in another dtype."""
    for layer in spec.layers:
        # A lookup computes in whole numbers.
        if layer.compute_dtype not in allowed and "float" in str(layer.compute_dtype):
            raise NotExportableError(
                f"{layer.name!r} computes in {layer.compute_dtype}, {why}. Build the model in "
                "float32 and give it these weights: copy.set_weights(model.get_weights())."
            )
