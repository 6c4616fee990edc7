"""SavedModels run where this package cannot be imported, with any batch and any length."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ALL, CASES, run_python

import keras_gates as kg

SERVE = """
    import pathlib, sys, numpy as np, tensorflow as tf
    try:
        import keras_gates
    except ImportError:
        pass
    else:
        sys.exit("keras_gates can be imported here")
    for path in pathlib.Path(sys.argv[1]).glob("*.npz"):
        serve = tf.saved_model.load(path.with_suffix("")).signatures["serving_default"]
        given = np.load(path)
        found = {name: list(serve(frames=tf.constant(given[name])).values())[0] for name in given}
        np.savez(path.with_suffix(".found"), **found)
"""

CLIP = {"grad_clip_norm": 1.0, "activation_l1": 1e-3, "candidate_l1": 1e-3}
NAMES = [*CASES, "bidirectional", "masking", "stateful"]


def make(name):
    frames = keras.Input((None, 3), name="frames")
    if name == "bidirectional":
        hidden = keras.layers.Bidirectional(kg.GatedRNN(4, **CLIP))(frames)
    elif name == "masking":
        hidden = keras.layers.Masking()(frames)
        hidden = kg.GatedRNN(4, return_sequences=True, grad_clip_value=1.0)(hidden)
        hidden = kg.GatedRNN(4, cell="lstm", **CLIP)(hidden)
    elif name == "stateful":
        frames = keras.Input(batch_shape=(2, None, 3), name="frames")
        hidden = kg.GatedRNN(4, stateful=True, **CLIP)(frames)
    else:
        hidden = kg.GatedRNN(4, **CASES[name][0], **CLIP)(frames)
    return keras.Model(frames, keras.layers.Dense(2)(hidden))


def inputs_for(name, rng):
    """Several batch sizes and lengths, with every kind of padding where there is a mask."""
    sizes = [(2, 7), (2, 3)] if name == "stateful" else [(1, 1), (5, 7), (3, 40)]
    given = {f"{b}x{t}": rng.normal(size=(b, t, 3)).astype("float32") for b, t in sizes}
    if name == "masking":
        x = given["5x7"]
        x[1, 4:] = x[2, :3] = x[3, 2:4] = x[4] = 0
    return given


def test_savedmodels_equal_their_models_without_the_package(tmp_path, rng):
    """All in one other process."""
    here = {}
    for name in NAMES if ALL else [*[*CASES][::3], *NAMES[len(CASES) :]]:
        model, given = make(name), inputs_for(name, rng)
        model.compile("sgd", "mse")
        x = next(iter(given.values()))
        model.fit(x, np.zeros((len(x), 2)), verbose=0)
        if name == "stateful":
            model.layers[1].reset_state()
        model.export(tmp_path / name, verbose=False)
        np.savez(tmp_path / f"{name}.npz", **given)
        here[name] = {key: np.array(model(x)) for key, x in given.items()}
    run_python(SERVE, tmp_path, without_package=True)
    for name, outputs in here.items():
        with np.load(tmp_path / f"{name}.found.npz") as there:
            for key, output in outputs.items():
                np.testing.assert_allclose(there[key], output, 1e-5, 1e-6, err_msg=name)


@pytest.mark.parametrize("cell", ["gru", "lstm", "simple"])
def test_savedmodel_holds_no_custom_gradient(cell, tmp_path, rng):
    model = keras.Sequential(
        [
            keras.Input((None, 3), name="frames"),
            kg.GatedRNN(4, cell=cell, grad_clip_norm=1.0, return_sequences=True),
            kg.GatedRNN(4, cell=cell, grad_clip_value=1.0, grad_clip_at="preactivation"),
        ]
    )
    model.compile("sgd", "mse")
    model.fit(rng.normal(size=(2, 5, 3)), np.zeros((2, 4)), verbose=0)
    path = tmp_path / "saved"
    model.export(path, verbose=False)
    assert nodes_with_custom_gradient(tf.saved_model.load(path)) == []
    # The search does find them where there are some: in the graph of a training step.
    with tf.GradientTape():
        step = tf.function(model).get_concrete_function(tf.zeros((2, 5, 3)))
    assert custom_gradients(step.graph.as_graph_def())


def nodes_with_custom_gradient(loaded):
    return [
        node
        for function in loaded.signatures.values()
        for node in custom_gradients(function.graph.as_graph_def())
    ]


def custom_gradients(graph):
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return [node.name for node in nodes if "_gradient_op_type" in node.attr]


def test_tfsm_layer_loads_it(tmp_path, rng):
    model = keras.Sequential([keras.Input((None, 3), name="frames"), kg.GatedRNN(4)])
    path = tmp_path / "saved"
    model.export(path, verbose=False)
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
    np.testing.assert_allclose(layer(x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("format", "name"), [("onnx", "ONNX"), ("openvino", "OpenVINO"), ("litert", "LiteRT")]
)
def test_text_is_refused_where_files_are_of_numbers(format, name, tmp_path):
    words = keras.layers.TextVectorization(max_tokens=20, name="words")
    words.adapt(["a b c", "b c d"])
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="string", name="text"),
            words,
            keras.layers.Embedding(20, 4, mask_zero=True),
            kg.GatedRNN(3),
        ]
    )
    message = f"the input 'text' is text, and {name} files are of numbers. Leave 'words' outside"
    with pytest.raises(kg.deployment.NotExportableError, match=message):
        kg.export(model, tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())
