"""From a function of TensorFlow to an ONNX graph, with ONNX's own recurrent operators."""

import json
import logging

import numpy as np

from keras_gates.deployment.errors import NotExportableError
from keras_gates.deployment.onnx.graphs import names_read, nodes
from keras_gates.deployment.onnx.scans import STAND_IN

_DOMAIN = "keras_gates"  # of Scans that have no body yet


def convert_function(function, specs, bodies, opset):
    """The ONNX model of a function.

    Args:
        function: from as many tensors as there are specs to a dict of tensors, whose keys become
            the names of the outputs, in their order.
        specs: `tf.TensorSpec`s, whose names become those of the inputs.
        bodies: of the Scans that the function has stand-ins for, each a function and its specs; may
            grow while the function is traced.
        opset: the version of ONNX's operators.

    Returns:
        An `onnx.ModelProto`.

    Raises:
        NotExportableError: the function uses something that ONNX lacks.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx

    names = []

    def traced(*tensors):
        found = function(*tensors)
        names[:] = found
        return found

    graph_function = tf.function(traced, autograph=False)
    concrete = graph_function.get_concrete_function(*specs)
    handlers = {"PyFunc": _put_operator, "SelectV2": _put_where, "Erfc": _put_erf}
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    try:
        # It tells of what it cannot convert, and goes on; what matters is found below.
        logger.setLevel(logging.CRITICAL)
        model, _ = tf2onnx.convert.from_function(
            graph_function,
            specs,
            opset=opset,
            custom_op_handlers={name: (handler, []) for name, handler in handlers.items()},
        )
    except Exception as error:  # of any kind
        raise NotExportableError(f"tf2onnx cannot convert the model: {error}") from error
    finally:
        logger.setLevel(level)
    _keep_constants(model.graph, concrete)
    model.graph.output.sort(key=lambda info: names.index(info.name))
    _put_bodies(model, bodies, opset)
    _refuse_foreign(model.graph, opset)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise NotExportableError(
            f"tf2onnx wrote a graph that ONNX does not accept: {error}"
        ) from error
    return model


def _put_operator(graph, node, name, _):
    """Replaces a stand-in by the operator that it stands for. tf2onnx calls it, as the others."""
    token = node.get_attr_str("token")
    if not token.startswith(STAND_IN):
        return  # a Python function of the user's, which `_refuse_foreign` finds
    description = json.loads(token.removeprefix(STAND_IN))
    if description["op_type"] == "Scan":
        attributes = {"body": description["body"], "num_scan_inputs": description["over_time"]}
        _replace(graph, node, "Scan", node.input, attributes, _DOMAIN)
        return
    if not description["masked"]:
        node.input.insert(4, "")  # there are no lengths
    _replace(graph, node, description["op_type"], node.input, description["attributes"])


def _put_where(graph, node, name, _):
    """Where, for a choice. tf2onnx multiplies by 0 and 1 instead, so that what is not chosen makes
    NaN if it is infinite."""
    node.type = "Where"


def _put_erf(graph, node, name, _):
    """1 - Erf(x), for the Erfc(x) in gelu, which tf2onnx does not know."""
    import onnx

    shapes, dtypes = node.output_shapes, node.output_dtypes
    one = np.ones((), onnx.helper.tensor_dtype_to_np_dtype(dtypes[0]))
    one = graph.make_const(f"{name}_one", one)
    erf = graph.make_node("Erf", node.input, shapes=shapes, dtypes=dtypes)
    _replace(graph, node, "Sub", [one.output[0], erf.output[0]])


def _put_bodies(model, bodies, opset):
    """Makes Scans of the nodes that have the number of their body."""
    import onnx

    for node in nodes(model.graph):
        if node.domain != _DOMAIN:
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        body = convert_function(*bodies[attributes["body"]], (), opset).graph
        body = onnx.compose.add_prefix_graph(body, f"{node.name}/body/")
        node.domain = ""
        del node.attribute[:]
        helper = onnx.helper.make_attribute
        node.attribute.append(helper("body", body))
        node.attribute.append(helper("num_scan_inputs", attributes["num_scan_inputs"]))
    for index, used in reversed(list(enumerate(model.opset_import))):
        if used.domain == _DOMAIN:
            del model.opset_import[index]


def _replace(graph, node, op_type, inputs, attributes=None, domain=""):
    """Puts another operator where a node is."""
    inputs, outputs = list(inputs), list(node.output)
    shapes, dtypes = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    graph.make_node(
        op_type,
        inputs,
        attributes,
        outputs=outputs,
        name=node.name,
        shapes=shapes,
        dtypes=dtypes,
        domain=domain,
    )


def _keep_constants(graph, function):
    """Makes weights of the tensors that a model holds beside its variables, which tf2onnx takes
    for inputs, of those at least that something still reads."""
    import onnx

    held = {
        inner.name: outer.numpy()
        for outer, inner in function.graph.captures
        if outer.dtype != "resource"
    }
    read = names_read(graph)
    for info in list(graph.input):
        if info.name not in held:
            continue
        graph.input.remove(info)
        if info.name in read:
            graph.initializer.append(onnx.numpy_helper.from_array(held[info.name], info.name))


def _refuse_foreign(graph, opset):
    """Raises if tf2onnx left operations of TensorFlow's in the graph, as it does silently."""
    import onnx

    for node in nodes(graph):
        if not node.domain and not onnx.defs.has(node.op_type, opset):
            raise NotExportableError(
                f"ONNX has no operator for TensorFlow's {node.op_type}, which the model uses in "
                f"{node.name!r}. Write that part with other operations, or take "
                "format='saved_model'."
            )
