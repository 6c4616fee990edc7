"""from_torch, against PyTorch's documented equations in NumPy, and against PyTorch where it is."""

import types

import keras
import numpy as np
import pytest
from helpers import BACKEND, DTYPE, TOLERANCE, assert_close
from reference import sigmoid

import keras_gates as kg

BATCH, TIME, FEATURES, UNITS = 3, 6, 2, 5
BLOCKS = {"GRU": 3, "LSTM": 4, "RNN": 1}


def step(kind, w, x, states, relu=False):
    """One time step, as in PyTorch's documentation of GRU, LSTM and RNN."""
    h = states[0]
    a = x @ w["weight_ih"].T + w.get("bias_ih", 0)
    b = h @ w["weight_hh"].T + w.get("bias_hh", 0)
    if kind == "RNN":
        return [np.maximum(a + b, 0) if relu else np.tanh(a + b)]
    if kind == "LSTM":
        i, f, g, o = np.split(a + b, 4, axis=1)
        c = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    (ar, az, an), (br, bz, bn) = np.split(a, 3, axis=1), np.split(b, 3, axis=1)
    r, z = sigmoid(ar + br), sigmoid(az + bz)
    n = np.tanh(an + r * bn)
    return [(1 - z) * n + z * h]


def run(kind, state, x, relu=False):
    """The output, and the last states: layer by layer, forward before backward, h before c."""
    layers = sorted({name.split("_l")[1] for name in state}, key=lambda n: (int(n[0]), n[1:]))
    directions = 2 if "0_reverse" in layers else 1
    states, outputs = [], []
    for place, layer in enumerate(layers):
        w = {name.split("_l")[0]: v for name, v in state.items() if name.endswith(f"_l{layer}")}
        h = [np.zeros((len(x), w["weight_hh"].shape[1]))] * (2 if kind == "LSTM" else 1)
        backward = layer.endswith("reverse")
        over_time = []
        for t in range(x.shape[1])[:: -1 if backward else 1]:
            h = step(kind, w, x[:, t], h, relu)
            over_time.append(h[0])
        states += h
        outputs.append(np.stack(over_time[:: -1 if backward else 1], axis=1))
        if place % directions == directions - 1:
            x, outputs = np.concatenate(outputs, axis=-1), []
    return x, states


def state_dict(rng, kind, layers=1, directions=1, bias=True, prefix=""):
    rows, state = BLOCKS[kind] * UNITS, {}
    for layer in range(layers):
        for end in ("", "_reverse")[:directions]:
            columns = UNITS * directions if layer else FEATURES
            shapes = {"weight_ih": (rows, columns), "weight_hh": (rows, UNITS)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in shapes.items():
                state[f"{prefix}{name}_l{layer}{end}"] = 0.5 * rng.normal(size=shape)
    return state


class Tensor:
    """What from_torch does with a tensor of PyTorch."""

    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    cpu = double = detach

    def numpy(self):
        return self.value


def module(kind, state, **attributes):
    """What looks like a module of PyTorch."""
    made = type(kind, (), {"__module__": "torch.nn.modules.rnn"})()
    tensors = {name: Tensor(value) for name, value in state.items()}
    made.__dict__.update(state_dict=lambda: tensors, **attributes)
    return made


def sequences(rng):
    return rng.normal(size=(BATCH, TIME, FEATURES))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_states_are_those_of_the_equations(rng, kind, directions, layers, bias):
    state = state_dict(rng, kind, layers, directions, bias)
    x = sequences(rng)
    expected, states = run(kind, state, x)
    found, *found_states = kg.from_torch(state, return_state=True, dtype=DTYPE)(x)
    assert_close(found, expected)
    for one, other in zip(found_states, states, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
def test_without_sequences_it_is_the_last_state_of_the_last_layer(rng, directions, layers):
    state = state_dict(rng, "GRU", layers, directions)
    x = sequences(rng)
    _, states = run("GRU", state, x)
    made = kg.from_torch(state, return_sequences=False, dtype=DTYPE)
    assert_close(made(x), np.concatenate(states[-directions:], axis=1))


@pytest.mark.parametrize("said", [{"nonlinearity": "relu"}, {"mode": "RNN_RELU"}])
def test_what_a_module_says_beside_its_weights(rng, said):
    state = state_dict(rng, "RNN", 2)
    made = kg.from_torch(module("RNN", state, dropout=0.3, **said), dtype=DTYPE)
    x = sequences(rng)
    assert_close(made(x), run("RNN", state, x, relu=True)[0])
    (dropout,) = [layer for layer in made.layers if isinstance(layer, keras.layers.Dropout)]
    assert dropout.rate == 0.3
    assert np.abs(made(x, training=True) - made(x)).max() > 0.01


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_cell_becomes_a_cell(rng, kind):
    state = {name.removesuffix("_l0"): v for name, v in state_dict(rng, kind).items()}
    cell = kg.from_torch(module(f"{kind}Cell", state), dtype=DTYPE, grad_clip_norm=1.0)
    assert isinstance(cell, kg.GatedCell)
    assert cell.grad_clip_norm == 1.0
    x = rng.normal(size=(BATCH, FEATURES))
    states = [rng.normal(size=(BATCH, UNITS)) for _ in cell.state_names]
    expected = step(kind, state, x, states)
    tensors = [keras.ops.convert_to_tensor(s, DTYPE) for s in states]
    _, found = cell(keras.ops.convert_to_tensor(x, DTYPE), tensors)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_changes_and_names(rng):
    state = state_dict(rng, "LSTM", 2, 2)
    made = kg.from_torch(
        state, name="mine", candidate_activation="softsign", activation_l1=0.1, grad_clip_value=1.0
    )
    assert made.name == "mine"
    assert made.output_shape == (None, None, 2 * UNITS)
    for layer in made.layers[1:]:
        for part in (layer.forward_layer, layer.backward_layer):
            assert part.cell.candidate_activation is keras.activations.softsign
            assert (part.cell.activation_l1, part.cell.grad_clip_value) == (0.1, 1.0)
    assert kg.from_torch(state_dict(rng, "GRU"), name="one").name == "one"
    assert kg.from_torch(state_dict(rng, "GRU", 1, 2), name="two").name == "two"


def test_within_the_state_dict_of_a_model(rng, tmp_path):
    state = state_dict(rng, "GRU", 2, prefix="encoder.rnn.")
    state["fc.weight"] = rng.normal(size=(4, UNITS))
    made = keras.Sequential(
        [keras.Input((None, FEATURES)), kg.from_torch(state), keras.layers.Dense(4)]
    )
    x = sequences(rng).astype("float32")
    made.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), made(x), atol=1e-6)
    inner = made.layers[0]
    del state["fc.weight"]
    expected, _ = run("GRU", {k.removeprefix("encoder.rnn."): v for k, v in state.items()}, x)
    np.testing.assert_allclose(inner(x), expected, atol=1e-5)


def test_several_layers_take_no_initial_state_but_each_does(rng, tmp_path):
    state, x = state_dict(rng, "GRU", 2), sequences(rng)
    made = kg.from_torch(state, dtype=DTYPE)
    h = [rng.normal(size=(BATCH, UNITS)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"takes no `initial_state`.*in model.layers\[1:\]"):
        made(x, initial_state=h)
    with pytest.raises(ValueError, match="takes no `initial_state`"):
        made(x, h)
    made.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), made(x))
    with pytest.raises(ValueError, match="takes no `initial_state`"):
        keras.models.clone_model(loaded)(x, initial_state=h)
    np.testing.assert_array_equal(loaded(x, initial_state=None), made(x))
    # What the error says to do.
    expected, found = x, x
    for number, layer in enumerate(made.layers[1:]):
        w = {k.split("_l")[0]: v for k, v in state.items() if k.endswith(f"_l{number}")}
        states, steps = [h[number]], []
        for t in range(TIME):
            states = step("GRU", w, expected[:, t], states)
            steps.append(states[0])
        expected = np.stack(steps, axis=1)
        found = layer(found, initial_state=keras.ops.convert_to_tensor(h[number], DTYPE))
    assert_close(found, expected)


def test_errors(rng):
    state = state_dict(rng, "LSTM")
    for wrong, message in (
        ({}, "the state dict of one recurrent module.*Received: nothing"),
        ({"fc.weight": np.ones(3)}, "Received: 'fc.weight'"),
        (
            {**state, **state_dict(rng, "GRU", prefix="other.")},
            "several, under '', 'other.': leave in what begins with one of them",
        ),
        ({**state, "weight_hr_l0": np.ones((2, UNITS))}, "without projections.*proj_size=2"),
        ({k: v[:-1] for k, v in state.items()}, "that fit each other.*Received: the shapes.*19"),
        ({k: v for k, v in state.items() if k != "bias_ih_l0"}, "both biases or none"),
        ({k: v for k, v in state.items() if k != "weight_ih_l0"}, "that fit each other"),
        ({**state, "weight_ih_l0": np.ones(20)}, "that fit each other"),
        ({k.replace("l0", "l1"): v for k, v in state.items()}, "that fit each other"),
    ):
        with pytest.raises(ValueError, match=message):
            kg.from_torch(wrong)
    with pytest.raises(ValueError, match="from_torch keeps the weights, and `units` changes"):
        kg.from_torch(state, units=3)
    with pytest.raises(ValueError, match="keeps the directions.*go_backwards=True"):
        kg.from_torch(state, go_backwards=True)
    with pytest.raises(TypeError, match="takes no argument `grad_clip`"):
        kg.from_torch(state, grad_clip=1.0)
    with pytest.raises(TypeError, match="no argument `batch_first`: the module says it.*=True"):
        kg.from_torch(state, batch_first=True)
    with pytest.raises(TypeError, match="Received: the class GRU. Make one of it"):
        kg.from_torch(type("GRU", (), {"named_modules": lambda self: [], "__module__": "torch"}))
    with pytest.raises(TypeError, match="`module` must be a torch.nn.GRU.* of type int"):
        kg.from_torch(3)
    gru = module("GRU", state_dict(rng, "GRU"))
    own = type("Own", (type(gru),), {"__module__": "mine"})()
    with pytest.raises(TypeError, match="of type Own, a subclass that may compute something else"):
        kg.from_torch(own)
    whole = types.SimpleNamespace(named_modules=lambda: [("", 1), ("encoder.rnn", gru)])
    with pytest.raises(TypeError, match="Convert what is recurrent in it: encoder.rnn"):
        kg.from_torch(whole)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("batch_first", [True, False])
def test_pytorch_itself_computes_the_same(rng, kind, directions, batch_first):
    torch = pytest.importorskip("torch")
    original = getattr(torch.nn, kind)(
        FEATURES,
        UNITS,
        num_layers=2,
        bidirectional=directions == 2,
        batch_first=batch_first,
        dropout=0.2,
        dtype=torch.float64,
        **({"nonlinearity": "relu"} if kind == "RNN" and batch_first else {}),
    ).eval()
    x = sequences(rng)
    with torch.no_grad():
        expected, states = original(torch.from_numpy(x if batch_first else x.swapaxes(0, 1)))
    expected = expected.numpy() if batch_first else expected.numpy().swapaxes(0, 1)
    states = states if kind == "LSTM" else (states,)
    found, *found_states = kg.from_torch(original, return_state=True, dtype=DTYPE)(x)
    tolerance = TOLERANCE if BACKEND == "tensorflow" else 1e-4
    assert_close(found, expected, tolerance)
    in_order = [one[k].numpy() for k in range(2 * directions) for one in states]
    for one, other in zip(found_states, in_order, strict=True):
        assert_close(one, other, tolerance)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_pytorch_itself_in_half_precision_and_as_a_cell(rng, kind):
    torch = pytest.importorskip("torch")
    original = getattr(torch.nn, kind)(FEATURES, UNITS).to(torch.bfloat16)
    x = sequences(rng)
    state = {name: tensor.detach().double().numpy() for name, tensor in original.named_parameters()}
    assert_close(kg.from_torch(original, dtype=DTYPE)(x), run(kind, state, x)[0])
    cell = getattr(torch.nn, f"{kind}Cell")(FEATURES, UNITS, dtype=torch.float64)
    with torch.no_grad():
        expected = cell(torch.from_numpy(x[:, 0]))
    expected = expected[0] if kind == "LSTM" else expected
    layer = keras.layers.RNN(kg.from_torch(cell, dtype=DTYPE), dtype=DTYPE)
    assert_close(layer(x[:, :1]), expected.numpy())
