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

from keras_gates.deployment import onnx as onnx_format
from keras_gates.deployment.errors import NotExportableError
from keras_gates.deployment.inputs import layers
from keras_gates.deployment.written import Written

SUFFIX = ".xml"
ACTIVATIONS = frozenset({"Sigmoid", "Tanh", "Relu"})
_NOTES = ["keras_gates", "notes"]  # path in the metadata of a file
_SOURCE = ["conversion_parameters", "input_model"]  # a temporary folder, otherwise
_LOOPS = "Recurrent layers run as Loops, which are slower. {reason}"
_PRECISION = (
    "Compile it with INFERENCE_PRECISION_HINT=f32: by default OpenVINO computes in bfloat16 on "
    "processors that can, and agrees to two or three digits then."
)
# Of a graph, what does not compute.
_BOOKKEEPING = ("Parameter", "Result", "Const")


def check_exportable(model):
    """Raises NotExportableError if an OpenVINO file cannot hold the model."""
    if keras.backend.backend() != "tensorflow":
        raise NotExportableError(
            "OpenVINO files are written by way of TensorFlow, and this is Keras on "
            f"{keras.backend.backend()}. Load the model with KERAS_BACKEND=tensorflow, and export "
            "it there."
        )
    try:
        import onnx  # noqa: F401
        import openvino  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'OpenVINO files need openvino, onnx and tf2onnx: pip install "keras_gates[openvino]"'
        ) from error
    for layer in layers(model):
        if getattr(layer, "stateful", False):
            raise NotExportableError(
                f"{layer.name!r} is stateful, and an OpenVINO file remembers nothing between "
                "calls. format='saved_model' and format='litert' hold such a model."
            )
        if layer.compute_dtype in ("float16", "bfloat16"):
            raise NotExportableError(
                f"{layer.name!r} computes in {layer.compute_dtype}, and an OpenVINO file leaves "
                "the precision to who compiles it. Build the model in float32 and give it these "
                "weights: copy.set_weights(model.get_weights())."
            )


def foreign(path):
    """What has the name of one of the two files, and is of something else."""
    weights = path.with_suffix(".bin")
    if path.exists() and b"<net " not in path.read_bytes()[:1000]:
        return {path.name}
    return {weights.name} if weights.exists() and not path.exists() else set()


def write(model, path):
    """Writes the model to the file `path`, and its weights beside it."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        graph, notes = _by_onnx(model, pathlib.Path(folder, "model.onnx"))
        if graph is None:
            graph = _of_loops(model, pathlib.Path(folder, "model"))
    graph.set_rt_info(json.dumps([*notes, _PRECISION]), _NOTES)
    graph.set_rt_info(model.name, _SOURCE)
    openvino.save_model(graph, str(path), compress_to_fp16=False)
    return read(path)


def read(path):
    """What is in the OpenVINO file `path`."""
    import openvino

    graph = openvino.Core().read_model(str(path))
    counted = collections.Counter(
        layer.get("type") for layer in ElementTree.parse(path).iter("layer")
    )
    for name in _BOOKKEEPING:
        counted.pop(name, None)
    notes = graph.get_rt_info(_NOTES).astype(str) if graph.has_rt_info(_NOTES) else "[]"
    signature = {"inputs": _tensors(graph.inputs), "outputs": _tensors(graph.outputs)}
    return Written(dict(counted.most_common()), json.loads(notes), {"serving_default": signature})


def _by_onnx(model, path):
    """The model by way of an ONNX file, or None where that is no way for it; and notes."""
    import onnx
    import openvino

    from keras_gates.deployment.onnx.convert import nodes
    from keras_gates.deployment.onnx.recurrent import Runtime

    try:
        onnx_format.check_exportable(model)
        file, notes = onnx_format.to_onnx(model, Runtime("OpenVINO", ACTIVATIONS, lengths=False))
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
    return graph, [*notes, onnx_format.NOT_A_NUMBER.format(runtime="OpenVINO")]


def _of_loops(model, folder):
    """The model by way of a SavedModel, with the loops that Keras makes.

    The faster ones of `keras_gates.deployment.loops` may take no turn at all, after which OpenVINO
    goes on with what the call before left there.
    """
    import openvino

    from keras_gates.deployment.signatures import signatures

    archive = keras.export.ExportArchive()
    for name, (function, specs) in signatures(model).items():
        archive.add_endpoint(name, function, specs)
    archive.write_out(str(folder), verbose=False)
    try:
        return openvino.convert_model(str(folder))
    except (openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
        operators = re.findall(r"operations: (.*)", str(error)) or [str(error)]
        raise NotExportableError(
            f"OpenVINO has no operator for {operators[0]} in {model.name!r}. Take another "
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
