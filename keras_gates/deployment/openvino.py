"""OpenVINO files (.xml with the graph, .bin with the weights), for Intel's processors.

Batch and time are dynamic. Recurrent layers are OpenVINO's own GRUSequence, LSTMSequence and
RNNSequence, by way of an ONNX file, where that is right: these operators know the activations
sigmoid, tanh and relu alone, and pass over the lengths that stand for a mask, without a word. What
needs more runs as a Scan of the cell's own equations (OpenVINO's TensorIterator), which is slower.
A model with layers whose equations are not known runs as Loops, by way of a SavedModel, which are
the slowest. The notes say what runs how, and why.

    import openvino

    model = openvino.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    model({"frames": frames})["outputs"]
"""

import collections
import json
import pathlib
import re
import tempfile
from xml.etree import ElementTree

import keras

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
from keras_gates.deployment.onnx import NOT_A_NUMBER, ONNX, first_states, to_onnx
from keras_gates.deployment.onnx.graphs import nodes

ACTIVATIONS = frozenset({"Sigmoid", "Tanh", "Relu"})
# Paths in the metadata of a file.
_NOTES, _STATES = ["keras_gates", "notes"], ["keras_gates", "states"]
_SOURCE = ["conversion_parameters", "input_model"]  # a temporary folder, otherwise
_LOOPS = "Recurrent layers run as Loops, which are slower. {reason}"
_PRECISION = (
    "Compile it with INFERENCE_PRECISION_HINT=f32, as it was when it was compared and timed: by "
    "default OpenVINO computes in bfloat16 on processors that can, and agrees to two or three "
    "digits then."
)
_NO_SEQUENCES = (
    "It needs at least one sequence: without any, OpenVINO's own recurrent operators end the "
    "process."
)
_NO_STEPS = "It needs at least one time step: without any, OpenVINO fails at a Scan or a Loop."
_OWN = {"GRUSequence", "LSTMSequence", "RNNSequence"}
# Of a graph, what does not compute.
_BOOKKEEPING = ("Parameter", "Result", "Const")


class OpenVINO(Format):
    """A file with the graph, and one with the weights beside it."""

    suffixes = (".xml", ".bin")

    def check(self, spec, *, streaming=False):
        refuse_other_backends("OpenVINO")
        refuse_missing("OpenVINO", "openvino", "openvino", "onnx", "tf2onnx")
        refuse_text(spec, "OpenVINO")
        refuse_stateful(spec, "OpenVINO", streaming)
        why = "and an OpenVINO file leaves the precision to who compiles it"
        refuse_other_precisions(spec, why)

    def write(self, spec, path, *, stream=None):
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            graph, notes = _by_onnx(spec, pathlib.Path(folder, "model.onnx"), stream)
            if graph is None and stream is not None:
                raise NotExportableError(
                    f"{spec.model.name!r} cannot be a stream in OpenVINO. {notes[0]} "
                    "format='saved_model' holds its states."
                )
            if graph is None:
                graph = _of_loops(spec, pathlib.Path(folder, "model"))
        operators = {operator.get_type_name() for operator in graph.get_ops()}
        if operators & _OWN:
            notes += [NOT_A_NUMBER.format(runtime="OpenVINO"), _NO_SEQUENCES]
        if operators & {"Loop", "TensorIterator"}:
            notes.append(_NO_STEPS)
        graph.set_rt_info(json.dumps([*notes, _PRECISION]), _NOTES)
        graph.set_rt_info(spec.model.name, _SOURCE)
        if stream is not None:
            graph.set_rt_info(json.dumps(first_states(stream)), _STATES)
        openvino.save_model(graph, str(path), compress_to_fp16=False)
        return self.read(path)

    def read(self, path):
        import openvino

        graph = openvino.Core().read_model(str(path))
        counted = collections.Counter(
            layer.get("type") for layer in ElementTree.parse(path).iter("layer")
        )
        for name in _BOOKKEEPING:
            counted.pop(name, None)
        notes = graph.get_rt_info(_NOTES).astype(str) if graph.has_rt_info(_NOTES) else "[]"
        signature = {"inputs": _tensors(graph.inputs), "outputs": _tensors(graph.outputs)}
        name = "chunk" if graph.has_rt_info(_STATES) else "serving_default"
        return Written(dict(counted.most_common()), json.loads(notes), {name: signature})

    def files(self, path):
        if not path.exists() or b"<net " not in path.read_bytes()[:1000]:
            return set()  # of something else
        return super().files(path)


def _by_onnx(spec, path, stream=None):
    """The model by way of an ONNX file, or None where that is no way for it; and notes."""
    import onnx
    import openvino

    from keras_gates.deployment.onnx.recurrent import Runtime

    try:
        ONNX().check(spec, streaming=stream is not None)
        file, notes = to_onnx(spec, Runtime("OpenVINO", ACTIVATIONS, lengths=False), stream)
    except NotExportableError as error:
        return None, [_LOOPS.format(reason=f"They cannot be ONNX's operators: {error}")]
    if any(node.op_type == "Loop" for node in nodes(file.graph)):
        reasons = [note for note in notes if "runs as a Loop" in note]
        reason = " ".join(reasons) or "Something in the model is one in ONNX."
        return None, [_LOOPS.format(reason=reason)]
    onnx.save(file, str(path))
    try:
        graph = openvino.Core().read_model(str(path))
    except RuntimeError as error:
        return None, [_LOOPS.format(reason=f"OpenVINO cannot read the ONNX file: {error}")]
    return graph, notes


def _of_loops(spec, folder):
    """The model by way of a SavedModel, with the loops that Keras makes.

    The faster ones of `keras_gates.deployment.loops` may take no turn at all, after which OpenVINO
    goes on with what the call before left there.
    """
    import openvino

    from keras_gates.deployment.signatures import signatures

    archive = keras.export.ExportArchive()
    for name, (function, specs) in signatures(spec).items():
        archive.add_endpoint(name, function, specs)
    archive.write_out(str(folder), verbose=False)
    try:
        return openvino.convert_model(str(folder))
    except (openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
        operators = re.findall(r"operations: (.*)", str(error)) or [str(error)]
        raise NotExportableError(
            f"OpenVINO has no operator for {operators[0]} in {spec.model.name!r}. Take another "
            "activation or layer there, or format='saved_model'."
        ) from error


def _tensors(ports):
    return {
        name: {
            "shape": [
                None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape
            ],
            "dtype": port.get_element_type().to_dtype().name,
        }
        for port in ports
        for name in sorted(port.names)
    }
