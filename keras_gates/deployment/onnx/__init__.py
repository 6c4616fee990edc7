"""ONNX files, in which recurrent layers are ONNX's own GRU, LSTM and RNN operators.

Batch and time are dynamic. The operators take the activations as attributes, by their exact
parameters (`activations`), and masks of every kind as lengths (`recurrent`). Beside them is what
runs large batches faster (`batches`). What ONNX has no operator for, such as a cell of one's own,
runs as a Scan of the cell's equations (`scans`), and a layer whose equations are not known as a
Loop; both are slower, and the notes say which layer, and why.

    import onnxruntime

    session = onnxruntime.InferenceSession("model.onnx")
    (scores,) = session.run(None, {"frames": frames})

With `streaming=True` the states are inputs and outputs: what comes out as "rnn_hidden_next" goes
into the next call as "rnn_hidden". The one graph of a file takes any number of steps at a time.
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
    refuse_stateful,
    refuse_text,
)
from keras_gates.deployment.names import functional
from keras_gates.deployment.onnx.graphs import nodes
from keras_gates.validation import one_of

NOT_A_NUMBER = (
    "{runtime}'s own recurrent operators may turn NaN into numbers: look for NaN in the inputs, "
    "not in the outputs."
)
_ELSEWHERE = (
    "Compared in ONNX Runtime. For OpenVINO take format='openvino': of an ONNX file it ignores "
    "masks."
)
# A step of zeros before the Scan, of which nothing is kept, would help: it takes 6 microseconds a
# layer of every call, a third of one of a single step.
_NO_STEPS = "It needs at least one time step: without any, ONNX Runtime fails at a Scan or a Loop."
_TWICE = (
    "What runs over time is there twice: as ONNX's own operator for a few sequences, and as a "
    "Scan, which is faster for many."
)
_MASKED = (
    "A GRU or simple RNN with a mask is ONNX's own operator alone: fast for one sequence, but for "
    "many it may take several times as long as without the mask, and longer than a SavedModel."
)
STREAM_NOTE = (
    "A call takes the states and some time steps: what comes out under a name that ends in _next "
    "goes into the next call under the name without it. A stream begins with zeros, or with what "
    "the file's metadata have under keras_gates.states."
)
NEXT = "_next"
# Keys in the metadata of a file.
_NOTES, STATES = "keras_gates.notes", "keras_gates.states"
# Of 2021. What is newer would gain nothing here, and older runtimes could not read it.
_OPSET, _OPSETS = 15, (13, 14, 15, 16, 17)


class ONNX(Format):
    """A file."""

    suffixes = (".onnx",)

    def check(self, spec, *, streaming=False, opset=None):
        refuse_other_backends("ONNX")
        refuse_missing("ONNX", "onnx", "onnx", "tf2onnx")
        refuse_text(spec, "ONNX")
        refuse_other_precisions(spec, "for which ONNX Runtime lacks operators on CPUs")
        if opset is not None:
            one_of("opset", opset, _OPSETS)
        refuse_stateful(spec, "ONNX", streaming)
        for layer in spec.layers:
            if _repeats_a_recurrent_layer(layer, spec.model):
                raise NotExportableError(
                    f"{layer.name!r} runs a recurrent layer once per step of an axis of unknown "
                    "length, which tf2onnx converts wrongly. Give the axis a length: "
                    "keras.Input((8, None, 3)) instead of keras.Input((None, None, 3)); or take "
                    "format='saved_model'."
                )

    def write(self, spec, path, *, stream=None, opset=None):
        import onnx

        from keras_gates.deployment.onnx.batches import have_masks, suit_all_batches

        file, notes = to_onnx(spec, stream=stream, opset=opset)
        if have_masks(file):
            notes.append(_MASKED)
        if suit_all_batches(file):
            notes.append(_TWICE)
        if any(" runs as a " in note for note in notes):
            notes.append(_NO_STEPS)
        operators = {node.op_type for node in nodes(file.graph)}
        if operators & {"GRU", "LSTM", "RNN"}:
            notes += [NOT_A_NUMBER.format(runtime="ONNX Runtime"), _ELSEWHERE]
        onnx.checker.check_model(file, full_check=True)
        metadata = {_NOTES: json.dumps(notes)}
        if stream is not None:
            metadata[STATES] = json.dumps(first_states(stream))
        onnx.helper.set_model_props(file, metadata)
        pathlib.Path(path).write_bytes(file.SerializeToString())
        return self.read(path)

    def read(self, path):
        import onnx

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
            {"chunk" if STATES in metadata else "serving_default": signature},
        )


def to_onnx(spec, runtime=None, stream=None, opset=None):
    """The model as an `onnx.ModelProto`, and notes on it.

    Args:
        spec: the `ModelSpec`.
        runtime: the `recurrent.Runtime` that is to run it. Default: ONNX Runtime.
        stream: the `Stream` of the model, if its states are to be inputs and outputs.
        opset: the version of ONNX's operators.
    """
    from keras_gates.deployment.onnx.convert import convert_function
    from keras_gates.deployment.onnx.recurrent import ONNX_RUNTIME, recurrent_operators
    from keras_gates.deployment.signatures import signatures

    with recurrent_operators(spec, runtime or ONNX_RUNTIME) as (bodies, notes):
        function, specs = signatures(spec, stream=stream)["chunk" if stream else "serving_default"]
        function = _next_states(function, stream) if stream else function
        file = convert_function(function, specs, bodies, opset or _OPSET)
    _name_axes(file.graph, spec.inputs)
    file.producer_name, file.producer_version = "keras_gates", __version__
    return file, [*notes.values(), *([STREAM_NOTE] if stream else [])]


def first_states(stream):
    """From the name of each state to its values before the first step, or None for zeros."""
    found = {}
    for name, value in stream.initial_state(1).items():
        values = keras.ops.convert_to_numpy(value)[0].astype("float64").tolist()
        found[name] = values if any(values) else None
    return found


def _next_states(function, stream):
    """With other names for the states that come out, which no graph can have twice."""
    names = {state.name: state.name + NEXT for state in stream.states}

    def renamed(*values):
        return {names.get(name, name): value for name, value in function(*values).items()}

    return renamed


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
