"""LiteRT (formerly TensorFlow Lite) files, for phones and small devices.

They hold built-in operators alone, so that every LiteRT runtime runs them. Time is dynamic; the
batch size is fixed, since the loop over time cannot be converted otherwise. Signatures are
"serving_default", and with streaming "initial_state", "step" and "chunk": one time step after the
other is what a device wants.

    from ai_edge_litert.interpreter import Interpreter

    classify = Interpreter("model.tflite").get_signature_runner("serving_default")
    classify(frames=frames)  # (1, time, features), any time: the interpreter allocates anew

With `quantize="int8"` weights are 8-bit integers and activations are quantized as they come, by
their range ("dynamic range"): about a quarter of the size. LiteRT leaves weights of fewer than 1024
numbers as they are.
"""

import collections
import pathlib
import re
import tempfile

import keras

from keras_gates.deployment.errors import NotExportableError
from keras_gates.deployment.format import (
    Format,
    Written,
    refuse_missing,
    refuse_other_backends,
    refuse_other_precisions,
    refuse_text,
)
from keras_gates.validation import one_of, positive_integer

_QUANTIZATIONS = ("int8",)


class LiteRT(Format):
    """A file. Its options: `batch_size`, the fixed one (default: 1, or that of a stateful model);
    `quantize`, "int8" for weights as 8-bit integers."""

    suffixes = (".tflite",)

    def check(self, spec, *, streaming=False, batch_size=None, quantize=None):
        refuse_other_backends("LiteRT")
        refuse_missing("LiteRT", "litert", "ai_edge_litert")
        refuse_text(spec, "LiteRT")
        if quantize is not None:
            one_of("quantize", quantize, _QUANTIZATIONS)
        _batch_size(spec, batch_size)
        why = "and LiteRT's built-in operators in float32"
        refuse_other_precisions(spec, why, allowed=("float32",))

    def write(self, spec, path, *, stream=None, batch_size=None, quantize=None):
        import tensorflow as tf

        from keras_gates._keras.litert import ConverterError
        from keras_gates.deployment.signatures import notes_on_states, signatures

        functions = signatures(spec, _batch_size(spec, batch_size), stream)
        archive = keras.export.ExportArchive()
        for name, (function, specs) in functions.items():
            archive.add_endpoint(name, function, specs)
        with tempfile.TemporaryDirectory() as folder:
            archive.write_out(folder, verbose=False)
            converter = tf.lite.TFLiteConverter.from_saved_model(
                folder, signature_keys=[*functions]
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            if quantize:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            try:
                content = converter.convert()
            except ConverterError as error:
                raise NotExportableError(_obstacle(spec.model, str(error))) from error
        pathlib.Path(path).write_bytes(content)
        written = self.read(path)
        if quantize and not written.notes:
            written.notes.append(
                "Nothing is quantized: no weight has the 1024 numbers from which on LiteRT does it."
            )
        written.notes += notes_on_states(spec, stream)
        return written

    def read(self, path):
        from keras_gates._keras.litert import schema

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
