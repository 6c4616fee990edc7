"""LiteRT (formerly TensorFlow Lite) files, for phones and small devices.

They hold built-in operators alone, so that every LiteRT runtime runs them. Time is dynamic; the
batch size is fixed, since the loop over time cannot be converted otherwise. Signatures are
"serving_default", and with streaming "initial_state", "step" and "chunk": one time step after the
other is what a device wants.

    from ai_edge_litert.interpreter import Interpreter

    classify = Interpreter("model.tflite").get_signature_runner("serving_default")
    classify(frames=frames)  # (1, time, features), any time: the interpreter allocates anew

`quantize=` makes files smaller, and fit for devices:

- "int8": weights are 8-bit integers and activations are quantized as they come, by their range
  ("dynamic range"): about a quarter of the size. LiteRT leaves weights of fewer than 1024 numbers
  as they are.
- "float16": weights are stored in half precision, which is half of the size.
- "full_int8": all is computed in 8-bit integers, between inputs and outputs of float32; "int16x8":
  activations have 16 bits. The ranges of all values are those on `representative_data`. LiteRT does
  that for graphs without loops alone: the one over time is written out for `length` steps, or, with
  streaming, there is the signature "step".
"""

import collections
import contextlib
import pathlib
import re
import tempfile
import warnings

import keras
import numpy as np

from keras_gates._keras import formats
from keras_gates._keras.layers import standing_in
from keras_gates.deployment.errors import NotExportableError
from keras_gates.deployment.format import (
    Format,
    Written,
    refuse_missing,
    refuse_other_backends,
    refuse_other_precisions,
    refuse_text,
)
from keras_gates.deployment.noise import without_noise
from keras_gates.validation import one_of, positive_integer

_QUANTIZATIONS = ("int8", "float16", "full_int8", "int16x8")
_INTEGERS = ("full_int8", "int16x8")  # of which the ranges of all values are to be known
_GRAPH = "saved_model.pb"
_MOST_SAMPLES = 100  # that these are taken from


class LiteRT(Format):
    """A file. Its options: `batch_size`, the fixed one (default: 1, or that of a stateful model);
    `length`, a fixed number of time steps, which are written out; `quantize`, and for some of its
    kinds `representative_data`."""

    suffixes = (".tflite",)

    def check(
        self,
        spec,
        *,
        streaming=False,
        batch_size=None,
        length=None,
        quantize=None,
        representative_data=None,
    ):
        refuse_other_backends("LiteRT")
        refuse_missing("LiteRT", "litert", "ai_edge_litert")
        refuse_text(spec, "LiteRT")
        if quantize is not None:
            one_of("quantize", quantize, _QUANTIZATIONS)
        if length is not None:
            positive_integer("length", length)
        if (quantize in _INTEGERS) != (representative_data is not None):
            raise ValueError(
                f"`representative_data`, such as some of the training data, is needed for quantize="
                f"{' and '.join(map(repr, _INTEGERS))}, and for nothing else. Received: quantize="
                f"{quantize!r} {'without' if representative_data is None else 'with'} it"
            )
        if quantize in _INTEGERS and (length is None) != streaming:
            # Of both, the ranges of one were seen to spoil the other (int16x8, TensorFlow 2.21).
            raise ValueError(
                f"with quantize={quantize!r} either `length` must be given, how many time steps "
                "the file takes, or streaming=True, for a file that takes one step at a time: "
                "LiteRT quantizes no loop over time. Received: "
                + (f"both, length={length!r} and streaming=True" if streaming else "neither")
            )
        if quantize == "int16x8":
            _refuse_integers(spec)
        if representative_data is not None:
            spec.data(representative_data, "representative_data")
        _batch_size(spec, batch_size)
        why = "and LiteRT's built-in operators in float32"
        refuse_other_precisions(spec, why, allowed=("float32",))

    def write(
        self,
        spec,
        path,
        *,
        stream=None,
        batch_size=None,
        length=None,
        quantize=None,
        representative_data=None,
    ):
        import tensorflow as tf

        from keras_gates._keras.litert import ConverterError
        from keras_gates.deployment.signatures import notes_on_states, signatures

        batch_size = _batch_size(spec, batch_size)
        functions = signatures(spec, batch_size, stream, length)
        if quantize in _INTEGERS:
            _refuse_other_states(stream, quantize)
            for name in ("chunk", "initial_state"):
                functions.pop(name, None)
            if stream is not None:
                del functions["serving_default"]
        archive = keras.export.ExportArchive()
        with tempfile.TemporaryDirectory() as folder:
            with unrolled(spec.layers if length else []):
                for name, (function, specs) in functions.items():
                    archive.add_endpoint(name, function, specs)
                archive.write_out(folder, verbose=False)
            if quantize in _INTEGERS and b"While" in pathlib.Path(folder, _GRAPH).read_bytes():
                # At which LiteRT would end the process.
                raise NotExportableError(
                    f"{spec.model.name!r} has a loop that is not a recurrent layer's, and LiteRT "
                    f"quantizes none with quantize={quantize!r}. Take quantize='int8'."
                )
            converter = tf.lite.TFLiteConverter.from_saved_model(
                folder, signature_keys=[*functions]
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            if quantize:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if quantize == "float16":
                converter.target_spec.supported_types = [tf.float16]
            elif quantize in _INTEGERS:
                converter.target_spec.supported_ops = [getattr(tf.lite.OpsSet, _OPS[quantize])]
                data = spec.data(representative_data, "representative_data")
                converter.representative_dataset = lambda: _representative(
                    functions, spec, data, batch_size, length, stream
                )
            try:
                with without_noise(), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprec")
                    content = converter.convert()
            except ConverterError as error:
                raise NotExportableError(_obstacle(spec.model, str(error))) from error
            except RuntimeError as error:
                if quantize not in _INTEGERS:
                    raise
                raise NotExportableError(
                    f"LiteRT cannot compute {spec.model.name!r} with quantize={quantize!r}: "
                    f"{str(error).splitlines()[0][:200]} Take another activation, or another "
                    "`quantize`."
                ) from error
        pathlib.Path(path).write_bytes(content)
        written = self.read(path)
        if quantize == "int8" and not written.notes:
            written.notes.append(
                "Nothing is quantized: no weight has the 1024 numbers from which on LiteRT does it."
            )
        written.notes += notes_on_states(spec, stream)
        if stream is not None and quantize in _INTEGERS:
            written.notes.append("A stream begins with states of zeros.")
        return written

    def read(self, path):
        schema = formats.litert()
        model = schema.ModelT.InitFromPackedBuf(pathlib.Path(path).read_bytes(), 0)
        operators, dtypes = _names(schema.BuiltinOperator), _names(schema.TensorType)
        counted = collections.Counter(
            operators[model.operatorCodes[operator.opcodeIndex].builtinCode]
            for graph in model.subgraphs
            for operator in graph.operators
        )

        def tensors(graph, described):
            found = {}
            for one in described:
                tensor = graph.tensors[one.tensorIndex]
                shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
                found[one.name.decode()] = {
                    "shape": [] if shape is None else [None if n < 0 else int(n) for n in shape],
                    "dtype": dtypes[tensor.type].lower(),
                }
            return found

        signatures = {
            one.signatureKey.decode(): {
                "inputs": tensors(model.subgraphs[one.subgraphIndex], one.inputs or []),
                "outputs": tensors(model.subgraphs[one.subgraphIndex], one.outputs or []),
            }
            for one in model.signatureDefs
        }
        weights = {
            tensor.buffer: tensor.type
            for graph in model.subgraphs
            for tensor in graph.tensors
            if model.buffers[tensor.buffer].data is not None
        }
        integers = sum(kind == schema.TensorType.INT8 for kind in weights.values())
        each = "1 weight consists" if integers == 1 else f"{integers} weights consist"
        notes = [f"Quantized: {each} of 8-bit integers."] if integers else []
        default = {name: signatures.pop(name) for name in ["serving_default"] if name in signatures}
        return Written(dict(counted.most_common()), notes, {**default, **signatures})


_OPS = {
    "full_int8": "TFLITE_BUILTINS_INT8",
    "int16x8": "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8",
}


@contextlib.contextmanager
def unrolled(layers):
    """While it lasts, recurrent layers write their loop over time out."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if isinstance(layer, keras.layers.RNN):
                stack.enter_context(standing_in(layer, unroll=True))
        yield


def _refuse_integers(spec):
    """Raises for inputs that LiteRT casts, which it cannot do between values of 16 bits."""
    for one in spec.inputs:
        if one.tokens or "float" not in one.dtype:
            what = "is read by an Embedding" if one.tokens else f"is of dtype {one.dtype}"
            raise NotExportableError(
                f"the input {one.name!r} {what}, and with quantize='int16x8' LiteRT computes with "
                "inputs of real numbers alone. Take quantize='full_int8' or 'int8', or leave what "
                "makes numbers of that input out of the model that you export."
            )


def _refuse_other_states(stream, quantize):
    """Raises unless streams begin with zeros: LiteRT quantizes no signature without inputs."""
    for name, value in {} if stream is None else stream.initial_state(1).items():
        if np.any(value):
            raise NotExportableError(
                f"streams begin with a learned {name!r}, and LiteRT cannot hold that with "
                f"quantize={quantize!r}. Take quantize='int8'."
            )


def _representative(functions, spec, data, batch_size, length, stream):
    """Yields (signature, inputs by name), from which LiteRT takes the ranges of all values."""
    count = min(_MOST_SAMPLES, len(data[0])) // batch_size or 1
    for index in range(count):
        part = [_cycled(value, index * batch_size, batch_size) for value in data]
        if "serving_default" in functions:
            values = spec.sized(part, batch_size, length)
            yield "serving_default", dict(zip(spec.names, values, strict=True))
        if stream is None:
            continue
        states = stream.initial_state(batch_size)
        over_time = [one.has_time for one in stream.inputs]
        for t in range(next(v.shape[1] for v, time in zip(part, over_time, strict=True) if time)):
            now = [v[:, t] if time else v for v, time in zip(part, over_time, strict=True)]
            given = dict(zip([one.name for one in stream.inputs], now, strict=True))
            yield "step", {**given, **{n: np.asarray(value) for n, value in states.items()}}
            _, states = stream.step(now, states)


def _cycled(values, start, count):
    return values[np.arange(start, start + count) % len(values)]


def _batch_size(spec, given):
    """The batch size of the file."""
    fixed = {one.shape[0] for one in spec.inputs} - {None}
    if given is None:
        return fixed.pop() if fixed else 1
    positive_integer("batch_size", given)
    if fixed and given not in fixed:
        raise ValueError(
            f"`batch_size` must be {fixed.pop()}, which {spec.model.name!r} has fixed because it "
            f"is stateful. Received: batch_size={given}"
        )
    return given


def _obstacle(model, message):
    """What the converter could not convert, and in which layer."""
    operators = list(dict.fromkeys(re.findall(r"'(tf\.\w+)' op", message)))
    paths = " ".join(re.findall(r'fused\["\w+:", "([^"@]+)', message))
    names = set(re.findall(r"[\w.-]+", paths))
    # Keras numbers the calls of a layer, and an export is a further one.
    names |= {re.sub(r"_\d+$", "", name) for name in names}
    found = [layer for layer in _outermost(model) if layer.name in names]
    where = " and ".join(f"{one.name!r} ({type(one).__name__})" for one in found)
    return (
        f"LiteRT has no built-in operator for {' and '.join(operators) or 'an operation'} in "
        f"{where or repr(model.name)}. Take another activation or layer there, or "
        "format='saved_model'."
    )


def _outermost(model):
    """The layers of a model and of the models in it, without what is inside of those layers."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _outermost(layer)
        else:
            yield layer


def _names(enumeration):
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
