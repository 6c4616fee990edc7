"""Uniform gates: biases and gain, derived from the equations of any cell."""

import keras
import numpy as np
import pytest
from helpers import MGUCell
from keras import ops

import keras_gates as kg
from keras_gates import activations
from keras_gates.activations.profiles import values
from keras_gates.cells import CELLS
from keras_gates.cells.initialization import UniformGates

UNITS = 16
SPREAD = 1 / UNITS + (1 - 2 / UNITS) * (np.arange(UNITS) + 0.5) / UNITS


def built(cell, **arguments):
    layer = kg.GatedRNN(UNITS, cell=cell, **arguments)
    layer.build((None, None, 3))
    return layer.cell


def bias_of(cell, block):
    bias = ops.convert_to_numpy(cell.bias)
    assert bias.ndim == 1 or not bias[1].any()
    columns = (bias if bias.ndim == 1 else bias[0]).reshape(len(cell.blocks), UNITS)
    return columns[cell.blocks.index(block)]


# Of each cell the gates that rise with what is kept of the state, and those that fall.
WAYS = {
    "gru": (["update"], []),
    "lstm": (["forget"], ["input"]),
    "peephole_lstm": (["forget"], ["input"]),
    "cifg": (["forget"], []),
    "janet": (["forget"], []),
    "mgu": ([], ["forget"]),
    "ugrnn": (["update"], []),
    "li_gru": (["update"], []),
    "min_gru": ([], ["update"]),
    "min_lstm": (["forget"], ["input"]),
    "n_brc": (["update"], []),
    "sru": (["forget"], []),
    "star": ([], ["update"]),
    "lem": ([], ["memory_step", "update"]),
    "multiplicative_lstm": (["forget"], ["input"]),
    "gated_antisymmetric": ([], ["update"]),
}


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "tanh_gate", "softsign_gate"])
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_gates_are_spread_evenly(name, gate):
    gates = {"update": gate} if name == "n_brc" else gate
    cell = built(
        name, gate_activation=gates, initialization="uniform_gates", bias_initializer="zeros"
    )
    rising, falling = WAYS[name]
    for block in cell.blocks:
        start = values(cell.gate_activations.get(block, activations.get("tanh", "a")), [0.0])[0]
        wanted = SPREAD if block in rising else 1 - SPREAD if block in falling else start
        if block in cell.gate_activations:
            found = values(cell.gate_activations[block], bias_of(cell, block))
            np.testing.assert_allclose(found, wanted, atol=2e-4)
        else:
            assert not bias_of(cell, block).any()


def gain_of(name, **arguments):
    """How much larger the candidate's block of U is than without it."""
    found = []
    for initialization in ("uniform_gates", None):
        keras.utils.set_random_seed(3)
        cell = built(name, initialization=initialization, **arguments)
        found.append(ops.convert_to_numpy(cell.recurrent_kernel))
    ratio = (found[0] / found[1]).reshape(UNITS, -1, UNITS)
    index = cell.blocks.index("candidate")
    np.testing.assert_allclose(np.delete(ratio, index, axis=1), 1, 1e-5)
    np.testing.assert_allclose(ratio[:, index], ratio[0, index, 0], 1e-5)
    return float(ratio[0, index, 0])


@pytest.mark.parametrize(
    ("name", "arguments", "critical"),
    [
        # z + (1 - z) r g φ'(0) = 1
        ("gru", {}, 2.0),
        ("gru", {"reset_after": False}, 2.0),
        ("gru", {"candidate_activation": lambda x: ops.tanh(3 * x)}, 2 / 3),
        # f + i o g φ'(0) ψ'(0) = 1
        ("lstm", {}, 2.0),
        ("lstm", {"output_activation": lambda x: 0.5 * x}, 4.0),
        # f + (1 - σ(-β)) g = 1
        ("janet", {}, 0.5 * (1 + np.exp(-1))),
        ("ugrnn", {}, 1.0),
        # Without a solution: the candidate has no slope, or U does not reach it.
        ("gru", {"candidate_activation": ops.square}, 1.0),
    ],
    ids=["gru", "before", "steep", "lstm", "flat output", "janet", "ugrnn", "no slope"],
)
@pytest.mark.filterwarnings("ignore")
def test_the_gain_of_the_candidate(name, arguments, critical):
    assert gain_of(name, **arguments) == pytest.approx(np.sqrt(critical), rel=2e-3)


def test_cells_of_ones_own_and_layer_norm():
    own = UniformGates(MGUCell(UNITS))
    assert own.ways == {"forget": -1.0}
    assert own.gain == pytest.approx(np.sqrt(2), rel=1e-3)
    cell = built("lstm", layer_norm=True, initialization="uniform_gates")
    bias = ops.convert_to_numpy(cell.norm_weights["kernel_bias_forget"])
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), SPREAD, atol=1e-4)
    assert UniformGates(cell).gain == 1  # what is normalized has no scale


def test_it_is_saved(tmp_path, rng):
    model = keras.Sequential(
        [keras.Input((None, 3)), kg.GatedRNN(4, initialization="uniform_gates")]
    )
    assert model.layers[0].initialization == "uniform_gates"
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].initialization == "uniform_gates"
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("name", sorted(CELLS))
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_every_cell_trains_with_it_or_says_why_not(name, rng):
    layer = kg.GatedRNN(4, cell=name, initialization="uniform_gates")
    if name in WAYS or name.startswith("layer_norm"):
        assert np.isfinite(ops.convert_to_numpy(layer(rng.normal(size=(2, 5, 3))))).all()
        return
    with pytest.raises(ValueError, match=r"none of the gates of .* has a bias of its own"):
        layer.build((None, None, 3))


@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_messages():
    with pytest.raises(ValueError, match=r"`initialization` must be .uniform_gates.*mean"):
        kg.GatedRNN(4, initialization="uniform")
    with pytest.raises(ValueError, match=r"use_bias=False leaves GRUCell none"):
        built("gru", use_bias=False, initialization="uniform_gates")
    with pytest.raises(ValueError, match=r"none of the gates of GRUCell has .* from 0 to 1"):
        built("gru", gate_activation="relu", initialization="uniform_gates")
