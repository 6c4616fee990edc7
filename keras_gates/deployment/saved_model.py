"""SavedModel: TensorFlow's own format, for TensorFlow Serving and wherever TensorFlow runs.

Batch and time are dynamic. Signatures are "serving_default", and with streaming "initial_state",
"step" and "chunk"; beside them the endpoint "serve" takes and returns what the model does, which
`keras.layers.TFSMLayer` calls.
"""

import collections
import contextlib
import io
import pathlib
import re

import keras
from google.protobuf.message import DecodeError
from keras import tree

from keras_gates._keras import formats
from keras_gates.deployment.errors import NotExportableError
from keras_gates.deployment.format import Format, Written
from keras_gates.deployment.names import output_names
from keras_gates.deployment.time_distributed import all_steps_at_once

_FILE = "saved_model.pb"
# Layers with lookup tables.
_WITH_TABLES = (
    keras.layers.IntegerLookup,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)
# Of a graph, what does not compute.
_BOOKKEEPING = ("Placeholder", "NoOp", "Const", "Identity", "IdentityN")


class SavedModel(Format):
    """A folder."""

    def check(self, spec, *, streaming=False):
        backend = keras.backend.backend()
        if backend not in ("tensorflow", "jax"):
            raise NotExportableError(
                f"Keras on {backend} cannot write a SavedModel. Load the model with "
                "KERAS_BACKEND=tensorflow, and export it there."
            )
        if streaming and backend != "tensorflow":
            raise NotExportableError(
                f"streaming=True needs Keras on TensorFlow, and this is Keras on {backend}. Load "
                "the model with KERAS_BACKEND=tensorflow, and export it there."
            )

    def write(self, spec, path, *, stream=None):
        import tensorflow as tf

        from keras_gates.deployment.loops import plain_loops
        from keras_gates.deployment.signatures import notes_on_states, signatures

        functions = signatures(spec, stream=stream)
        _, specs = functions.pop("serving_default")
        model, tensorflow = spec.model, keras.backend.backend() == "tensorflow"
        archive = keras.export.ExportArchive()
        if not tensorflow or any(isinstance(layer, _WITH_TABLES) for layer in spec.layers):
            archive.track(model)  # traces every layer on TensorFlow, and is needed for tables alone
        serve = archive.add_endpoint("serve", lambda given: model(given), [spec.pack(specs)])

        @tf.autograph.experimental.do_not_convert
        def serving_default(*values):
            # A function of JAX cannot call one of TensorFlow, and is converted once more.
            found = (serve if tensorflow else model)(spec.pack(values))
            return dict(zip(output_names(model, found), tree.flatten(found), strict=True))

        functions = {"serving_default": (serving_default, specs), **functions}
        with contextlib.ExitStack() as tracing:
            if tensorflow:
                tracing.enter_context(plain_loops(spec))
                tracing.enter_context(all_steps_at_once(spec))
            for name, (function, specs) in functions.items():
                function = tf.autograph.experimental.do_not_convert(function)
                archive.add_endpoint(name, function, specs)
            with contextlib.redirect_stdout(io.StringIO()):  # Keras 3.8 prints whatever one says
                archive.write_out(str(path), verbose=False)
        written = self.read(path)
        written.notes += notes_on_states(spec, stream)
        return written

    def read(self, path):
        saved = formats.saved_model().SavedModel()
        saved.ParseFromString((pathlib.Path(path) / _FILE).read_bytes())
        graph = saved.meta_graphs[0]
        found = {
            name: {"inputs": _tensors(signature.inputs), "outputs": _tensors(signature.outputs)}
            for name, signature in sorted(graph.signature_def.items())
            if not name.startswith("__")
        }
        default = {name: found.pop(name) for name in ["serving_default"] if name in found}
        found.pop("serve", None)  # the same once more, for TFSMLayer
        return Written(_operators(graph), [], {**default, **found})

    def files(self, path):
        saved = formats.saved_model().SavedModel()
        with contextlib.suppress(DecodeError, OSError):  # damaged, or an empty folder
            saved.ParseFromString((path / _FILE).read_bytes())
        assets = {asset.filename for graph in saved.meta_graphs for asset in graph.asset_file_def}
        own = re.compile(
            rf"{_FILE}|fingerprint\.pb|keras_metadata\.pb|"
            r"variables/variables\.(index|data-\d+-of-\d+)"
        )
        names = {file: file.relative_to(path).as_posix() for file in self.places(path)}
        return {
            file
            for file, name in names.items()
            if own.fullmatch(name) or name in {f"assets/{asset}" for asset in assets}
        }


def _tensors(described):
    return {
        name: {
            "shape": None
            if info.tensor_shape.unknown_rank
            else [None if axis.size < 0 else axis.size for axis in info.tensor_shape.dim],
            "dtype": _dtype(info),
        }
        for name, info in sorted(described.items())
    }


def _dtype(info):
    """The name of a dtype, as TensorFlow has it in Python."""
    names = info.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number
    name = names[info.dtype].name.removeprefix("DT_").lower()
    return {"half": "float16", "float": "float32", "double": "float64"}.get(name, name)


def _operators(graph):
    """How often each operation occurs in what the signatures run, functions counted once."""
    functions = {f.signature.name: f.node_def for f in graph.graph_def.library.function}
    outputs = [t.name for s in graph.signature_def.values() for t in s.outputs.values()]
    nodes = {node.name: node for node in graph.graph_def.node}
    counted, seen = collections.Counter(), set()
    waiting = [nodes[name.split(":")[0]] for name in outputs if name]
    while waiting:
        node = waiting.pop()
        called = [a.func.name for a in node.attr.values() if a.HasField("func")]
        called += [f.name for a in node.attr.values() for f in a.list.func]
        if not called or node.op in ("While", "StatelessWhile", "If", "StatelessIf"):
            counted[node.op] += 1
        for name in set(called) - seen:
            seen.add(name)
            waiting += functions[name]
    for name in _BOOKKEEPING:
        counted.pop(name, None)
    return dict(counted.most_common())
