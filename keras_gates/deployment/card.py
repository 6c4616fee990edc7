"""The model card of a written file, as the Hugging Face Hub and others show a README.md."""

import json
import pathlib

# What the Hub calls the library that runs such a file; with what that is done.
_RUN = {
    "saved_model": (
        "tf-keras",
        """\
import numpy as np
import tensorflow as tf

model = tf.saved_model.load({path!r})
outputs = model.signatures[{signature!r}]({keywords})""",
    ),
    "onnx": (
        "onnx",
        """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({path!r})
outputs = session.run(None, {{{items}}})""",
    ),
    "litert": (
        "litert",
        """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter

runner = Interpreter({path!r}).get_signature_runner({signature!r})
outputs = runner({keywords})""",
    ),
    "openvino": (
        "openvino",
        """\
import numpy as np
import openvino

model = openvino.Core().compile_model(
    {path!r}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}}
)
outputs = model({{{items}}})""",
    ),
}

# How a stream goes on in a file that has signatures for it, after the above.
_STREAM = {
    "saved_model": """\
states = model.signatures["initial_state"]({start})
found = model.signatures["step"](**{{{items}}}, **states)
states = {{name: found[name] for name in states}}  # for the next step""",
    "litert": """\
runner = Interpreter({path!r}).get_signature_runner
states = runner("initial_state")({start})
found = runner("step")(**{{{items}}}, **states)
states = {{name: found[name] for name in states}}  # for the next step""",
}


def text(report, figures, tensors, description, metadata):
    """The card of an `ExportReport`, with lines that the report has as text already."""
    path = pathlib.Path(report.path)
    library, code = _RUN[report.format]
    front = {"library_name": library, "tags": ["keras", "keras-gates"], **metadata}
    signature = next(iter(report.signatures))
    arrays = {name: _zeros(t) for name, t in report.signatures[signature]["inputs"].items()}
    example = code.format(
        path=path.name,
        signature=signature,
        keywords=f"**{{{_items(arrays)}}}",
        items=_items(arrays),
    )
    weights = ""
    if report.format == "openvino":
        weights = f", with its weights in `{path.with_suffix('.bin').name}` beside it,"
    parts = [
        # JSON is YAML.
        "\n".join(["---", *(f"{k}: {json.dumps(v)}" for k, v in front.items()), "---"]),
        f"# {path.stem}",
        description,
        f"`{path.name}`{weights} was written by keras_gates. What runs it needs neither that nor "
        "Keras.",
        "## What it takes and gives",
        *(
            f"`{name}`:\n\n"
            + "\n".join(
                f"- {way[:-1]} `{line}`"
                for way in ("inputs", "outputs")
                for line in tensors(s[way])
            )
            for name, s in report.signatures.items()
        ),
        f"```python\n{example}\n```",
        *_stream(report, path),
        "## How it compares with the model it was made of" if figures else "",
        "\n".join(f"- {line}" for line in figures),
        "## Good to know" if report.notes else "",
        "\n".join(f"- {note}" for note in report.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _stream(report, path):
    """What goes on step by step, in a file whose states are the caller's."""
    if "step" not in report.signatures or report.format not in _STREAM:
        return
    start, step = (report.signatures[name]["inputs"] for name in ("initial_state", "step"))
    states = report.signatures["initial_state"]["outputs"]
    code = _STREAM[report.format].format(
        path=path.name,
        start="batch_size=np.array(1, 'int32')" if start else "",
        items=_items({name: _zeros(t) for name, t in step.items() if name not in states}),
    )
    yield "One time step at a time, of a stream whose states the caller keeps:"
    yield f"```python\n{code}\n```"


def _items(arrays):
    return ", ".join(f"{name!r}: {array}" for name, array in arrays.items())


def _zeros(tensor):
    """Code for an array that such a tensor takes: one sequence of 10 steps, where it may choose."""
    known = [None, None] if tensor["shape"] is None else tensor["shape"]
    shape = tuple(size or (10 if axis == 1 else 1) for axis, size in enumerate(known))
    if tensor["dtype"] == "string":
        return f"np.full({shape}, '')"
    return f"np.zeros({shape}, {tensor['dtype']!r})"
