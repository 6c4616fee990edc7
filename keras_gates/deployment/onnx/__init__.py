"""ONNX files, in which recurrent layers are ONNX's own GRU, LSTM and RNN operators.

Batch and time are dynamic. The operators take the activations as attributes, by their exact
parameters (`activations`), and masks of every kind as lengths (`recurrent`). Beside them is what
runs large batches faster (`batches`). What ONNX has no operator for, such as a cell of one's own,
runs as a Scan of the cell's equations (`scans`), and a layer whose equations are not known as a
Loop; both are slower, and the notes say which layer, and why.

    import onnxruntime

    session = onnxruntime.InferenceSession("model.onnx")
    (scores,) = session.run(None, {"frames": frames})
"""

import collections
import json
import pathlib

import keras

from keras_gates._version import __version__
from keras_gates.deployment.errors import NotExportableError
from keras_gates.deployment.format import (
    Format,
    Written,
    refuse_missing,
    refuse_other_backends,
    refuse_other_precisions,
    refuse_text,
)
from keras_gates.deployment.names import functional

NOT_A_NUMBER = (
    "{runtime}'s own recurrent operators may turn NaN into numbers: look for NaN in what goes in, "
    "not in what comes out."
)
_ELSEWHERE = (
    "Compared in ONNX Runtime. For OpenVINO take format='openvino': from an ONNX file it can read "
    "not all, and passes over masks without a word."
)
_TWICE = (
    "What runs over time is there twice: as ONNX's own operator for a few sequences, and for many "
    "as a Scan, which ONNX Runtime runs faster."
)
_NOTES = "keras_gates.notes"  # key in the metadata of a file


class ONNX(Format):
    """A file."""

    suffixes = (".onnx",)

    def check(self, spec):
        refuse_other_backends("ONNX")
        refuse_missing("ONNX", "onnx", "onnx", "tf2onnx")
        refuse_text(spec, "ONNX")
        refuse_other_precisions(spec, "for which ONNX Runtime lacks operators on CPUs")
        for layer in spec.stateful:
            raise NotExportableError(
                f"{layer.name!r} is stateful, and an ONNX file remembers nothing between calls. "
                "Make its states inputs and outputs of the model, layer(x, initial_state=states) "
                "with return_state=True; or take format='saved_model' or 'litert'."
            )
        for layer in spec.layers:
            if _repeats_a_recurrent_layer(layer, spec.model):
                raise NotExportableError(
                    f"{layer.name!r} runs a recurrent layer once per step of an axis of unknown "
                    "length, which tf2onnx converts wrongly. Give the axis a length: "
                    "keras.Input((8, None, 3)) instead of keras.Input((None, None, 3)); or take "
                    "format='saved_model'."
                )

    def write(self, spec, path):
        import onnx

        from keras_gates.deployment.onnx.batches import suit_all_batches
        from keras_gates.deployment.onnx.convert import nodes

        file, notes = to_onnx(spec)
        if suit_all_batches(file):
            notes.append(_TWICE)
        operators = {node.op_type for node in nodes(file.graph)}
        if operators & {"GRU", "LSTM", "RNN"}:
            notes += [NOT_A_NUMBER.format(runtime="ONNX Runtime"), _ELSEWHERE]
        onnx.checker.check_model(file, full_check=True)
        onnx.helper.set_model_props(file, {_NOTES: json.dumps(notes)})
        pathlib.Path(path).write_bytes(file.SerializeToString())
        return self.read(path)

    def read(self, path):
        import onnx

        from keras_gates.deployment.onnx.convert import nodes

        file = onnx.load(str(path))
        counted = collections.Counter(node.op_type for node in nodes(file.graph))
        metadata = {entry.key: entry.value for entry in file.metadata_props}
        weights = {tensor.name for tensor in file.graph.initializer}
        signature = {
            "inputs": _tensors(i for i in file.graph.input if i.name not in weights),
            "outputs": _tensors(file.graph.output),
        }
        return Written(
            dict(counted.most_common()),
            json.loads(metadata.get(_NOTES, "[]")),
            {"serving_default": signature},
        )


def to_onnx(spec, runtime=None):
    """The model as an `onnx.ModelProto`, and notes on it.

    Args:
        spec: the `ModelSpec`.
        runtime: the `recurrent.Runtime` that is to run it. Default: ONNX Runtime.
    """
    from keras_gates.deployment.onnx.convert import convert_function
    from keras_gates.deployment.onnx.recurrent import ONNX_RUNTIME, recurrent_operators
    from keras_gates.deployment.signatures import signatures

    with recurrent_operators(spec, runtime or ONNX_RUNTIME) as (bodies, notes):
        file = convert_function(*signatures(spec)["serving_default"], bodies)
    _name_axes(file.graph, spec.inputs)
    file.producer_name, file.producer_version = "keras_gates", __version__
    return file, [*notes.values()]


def _repeats_a_recurrent_layer(layer, model):
    """Whether it is a TimeDistributed of one over an axis of unknown length."""
    if not isinstance(layer, keras.layers.TimeDistributed):
        return False
    inside = layer._flatten_layers(include_self=False)
    if not any(isinstance(part, keras.layers.RNN) for part in inside):
        return False
    # In a subclassed model the length that it was first called with says nothing.
    return functional(model) is None or layer.get_build_config()["input_shape"][1] is None


def _name_axes(graph, inputs):
    """Gives the dynamic axes names that mean something; tf2onnx numbers them."""
    over_time = [one.name for one in inputs if one.has_time]
    time = {name: "time" if over_time == [name] else f"{name}_time" for name in over_time}
    inputs = {info.name for info in graph.input}
    for info in [*graph.input, *graph.output]:
        for index, axis in enumerate(info.type.tensor_type.shape.dim):
            if axis.dim_value:
                continue
            axis.ClearField("dim_param")
            if index == 0:
                axis.dim_param = "batch"
            elif index == 1 and info.name in inputs & time.keys():
                axis.dim_param = time[info.name]


def _tensors(described):
    import onnx

    found = {}
    for info in described:
        tensor = info.type.tensor_type
        found[info.name] = {
            "shape": [axis.dim_value or None for axis in tensor.shape.dim],
            "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        }
    return found
