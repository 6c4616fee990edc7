"""Where gates start: biases and gain, derived from the equations of any cell."""

import json

import keras
import numpy as np
import pytest
from helpers import MGUCell, leave_out_for_time
from keras import ops

import keras_gates as kg
from keras_gates import activations
from keras_gates.activations.profiles import values
from keras_gates.cells import CELLS
from keras_gates.cells.initialization import GateStarts
from keras_gates.initializers import Chrono
from keras_gates.tuning import space

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


def kept_for(times):
    """The share that is kept at each step, of what is to be kept for so many."""
    return times / (1 + times)


# The biases of sigmoid are the logarithms of the times.
RANKS = (np.arange(UNITS) + 0.5) / UNITS
STARTS = {
    "uniform": ("uniform_gates", SPREAD),
    "log": (Chrono(300), kept_for(np.exp(RANKS * np.log(300)))),
    "paper": (Chrono(300, spread="uniform"), kept_for(1 + 298 * RANKS)),
}


@pytest.mark.parametrize(
    ("start", "gate"),
    [
        ("uniform", "sigmoid"), ("uniform", "hard_sigmoid"), ("uniform", "tanh_gate"),
        ("log", "sigmoid"), ("log", "softsign_gate"), ("paper", "hard_sigmoid"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_gates_are_spread(name, gate, start):
    leave_out_for_time(([*WAYS].index(name) + [*STARTS].index(start)) % 2)
    gates = {"update": gate} if name == "n_brc" else gate
    initialization, spread = STARTS[start]
    cell = built(
        name, gate_activation=gates, initialization=initialization, bias_initializer="zeros"
    )
    rising, falling = WAYS[name]
    for block in cell.blocks:
        start = values(cell.gate_activations.get(block, activations.get("tanh", "a")), [0.0])[0]
        wanted = spread if block in rising else 1 - spread if block in falling else start
        if block in cell.gate_activations:
            found = values(cell.gate_activations[block], bias_of(cell, block))
            np.testing.assert_allclose(found, wanted, atol=2e-4)
        else:
            assert not bias_of(cell, block).any()


@pytest.mark.parametrize("name", WAYS)
def test_zoneout_leaves_gates_where_they_start(name):
    for zoneout in (0.1, {"hidden": 0.3}):
        cell = kg.GatedRNN(4, cell=name, zoneout=zoneout, initialization="uniform_gates").cell
        rising, falling = WAYS[name]
        assert GateStarts(cell).ways == dict.fromkeys(rising, 1.0) | dict.fromkeys(falling, -1.0)


def test_chrono_in_an_lstm_is_that_of_the_paper():
    """b_f = log(t), b_i = -b_f, all else as it was."""
    cells = []
    for initialization in (Chrono(50, spread="uniform"), None):
        keras.utils.set_random_seed(4)
        cells.append(built("lstm", initialization=initialization))
    times = 1 + 48 * RANKS
    np.testing.assert_allclose(bias_of(cells[0], "forget"), np.log(times), atol=1e-3)
    np.testing.assert_allclose(bias_of(cells[0], "input"), -np.log(times), atol=1e-3)
    assert not bias_of(cells[0], "output").any()
    for one, other in zip(cells[0].weights[:2], cells[1].weights[:2], strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))


@pytest.mark.filterwarnings("ignore:.*works for training")
def test_a_gate_that_overflows_far_from_zero():
    def ratio(x):
        return ops.exp(x) / (1 + ops.exp(x))

    cell = built("gru", gate_activation=ratio, initialization=Chrono(500))
    times = np.exp(RANKS * np.log(500))
    np.testing.assert_allclose(bias_of(cell, "update"), np.log(times), atol=1e-3)


def test_units_remember_for_their_times():
    """Of a state of 1, with no input, about 1/e is left after the time of its unit."""
    layer = kg.GatedRNN(
        4, cell="janet", beta=0.0, return_sequences=True, initialization=Chrono(50),
        recurrent_initializer="zeros",
    )  # fmt: skip
    outputs = layer(np.zeros((1, 60, 2)), initial_state=np.ones((1, 4)))
    times = np.exp(np.log(50) * np.array([1, 3, 5, 7]) / 8)
    left = [np.interp(time, np.arange(1, 61), outputs[0, :, i]) for i, time in enumerate(times)]
    np.testing.assert_allclose(left, (1 + 1 / times) ** -times, atol=0.03)


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
    own = GateStarts(MGUCell(UNITS, initialization="uniform_gates"))
    assert own.ways == {"forget": -1.0}
    assert own.gain == pytest.approx(np.sqrt(2), rel=1e-3)
    cell = built("lstm", layer_norm=True, initialization="uniform_gates")
    bias = ops.convert_to_numpy(cell.norm_weights["kernel_bias_forget"])
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), SPREAD, atol=1e-4)
    assert GateStarts(cell).gain == 1  # what is normalized has no scale


@pytest.mark.parametrize("start", STARTS)
def test_it_is_saved(start, tmp_path, rng):
    initialization, _ = STARTS[start]
    layer = kg.GatedRNN(4, initialization=initialization)
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.Bidirectional(layer)])
    assert layer.cell.initialization == initialization
    config = json.loads(json.dumps(layer.get_config()))
    assert kg.GatedRNN.from_config(config).cell.initialization == initialization
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].forward_layer.cell.initialization == initialization
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_verdict_says_how_long_units_remember():
    verdict = kg.check_activations("gru", steps=64, units=16)
    started = kg.check_activations("gru", steps=64, units=16, initialization=Chrono(64))
    assert verdict.memory < verdict.memory_with_uniform_gates < started.memory
    assert "that long: initialization=keras_gates.initializers.Chrono(64)" in str(verdict)
    for other in (started, kg.check_activations("gru", steps=4), kg.check_activations("simple")):
        assert "Chrono" not in str(other)


def test_keras_is_the_default():
    weights = []
    for initialization in ({}, {"initialization": None}, {"initialization": "keras"}):
        keras.utils.set_random_seed(5)
        cell = built("lstm", **initialization)
        assert cell.initialization is None
        assert cell.get_config()["initialization"] is None
        weights.append([ops.convert_to_numpy(weight) for weight in cell.weights])
    for other in weights[1:]:
        for one, same in zip(weights[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


def test_a_diagnosis_says_how_a_layer_began(rng):
    model = keras.Sequential([keras.Input((6, 3)), kg.GatedRNN(4, initialization=Chrono(6))])
    found = kg.diagnose(model, rng.normal(size=(4, 6, 3)))
    assert json.loads(json.dumps(found.to_dict()))


@pytest.mark.parametrize("name", sorted(CELLS))
@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_every_cell_trains_with_it_or_says_why_not(name, rng):
    if name in WAYS or name.startswith("layer_norm"):
        layer = kg.GatedRNN(4, cell=name, initialization=Chrono(5))
        assert np.isfinite(ops.convert_to_numpy(layer(rng.normal(size=(2, 5, 3))))).all()
        return
    with pytest.raises(ValueError, match=r"spreads the gates that carry the state on, and "):
        kg.GatedRNN(4, cell=name, initialization=Chrono(5)).build((None, None, 3))


@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_messages():
    expected = r"`initialization` must be 'keras', 'uniform_gates', or .*Chrono\. Received"
    with pytest.raises(ValueError, match=f"{expected}: initialization='uniform'; did you mean"):
        kg.GatedRNN(4, initialization="uniform")
    with pytest.raises(ValueError, match=rf"{expected}: initialization=300"):
        kg.GatedRNN(4, initialization=300)
    zeros = keras.saving.serialize_keras_object(keras.initializers.Zeros())
    for given in (zeros, {"class_name": "Nothing", "config": {}}, {"chrono": 784}, np.ones(2)):
        with pytest.raises(ValueError, match=rf"{expected}: initialization="):
            kg.GatedRNN(4, initialization=given)
    for longest in (2, 0, 7.5, "7", True):
        with pytest.raises(ValueError, match=rf"`longest` must be .* longest={longest!r}"):
            Chrono(longest)
    with pytest.raises(ValueError, match=r"`spread` must be .*'log', 'uniform'.*spread='linear'"):
        Chrono(7, spread="linear")
    with pytest.raises(ValueError, match=r"use_bias=False leaves GRUCell none"):
        built("gru", use_bias=False, initialization="uniform_gates")
    with pytest.raises(ValueError, match=r"activation rises from 0 to 1.* GRUCell has"):
        built("gru", gate_activation="relu", initialization="uniform_gates")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("chrono", r"Did you mean keras_gates.initializers.Chrono\(150\)"),
        (90, r"Did you mean keras_gates.initializers.Chrono\(90\)"),
        (Chrono, "Did you mean keras_gates.initializers.Chrono"),
        ("orthogonal", "Initializers of Keras go to `kernel_initializer`"),
        (keras.initializers.Identity(), "Initializers of Keras go to"),
    ],
)
def test_what_is_meant_by_other_starts_is_guessed(given, hint):
    with pytest.raises(ValueError, match=f"`initialization` must be .* Received: .*{hint}"):
        kg.GatedRNN(4, initialization=given)


@pytest.mark.filterwarnings("ignore::keras_gates.UnstableActivationsWarning")
def test_why_gates_cannot_start_elsewhere():
    with pytest.raises(ValueError, match="and SimpleRNNCell has no gates"):
        kg.GatedRNN(4, "simple", initialization=Chrono(9))
    layer = kg.GatedRNN(4, gate_activation="relu", initialization=Chrono(9))
    with pytest.raises(ValueError, match=r"such as sigmoid. GRUCell has update \(relu\), reset"):
        layer.build((None, 5, 3))


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (Chrono(50), r"initialization=keras_gates.initializers.Chrono\(150\)"),
        ("chrono", r"initialization=keras_gates.initializers.Chrono\(150\)"),
        ("uniform_gates", "initialization='uniform_gates'"),
    ],
)
def test_a_start_is_no_initializer_of_one_weight(given, instead):
    for argument in ("bias_initializer", "recurrent_initializer"):
        with pytest.raises(ValueError, match=f"`{argument}` must be .* write {instead}"):
            kg.GatedRNN(4, **{argument: given})


def test_what_equations_do_to_a_projection_before_the_gate_is_undone():
    class Sharp(kg.GatedCell):
        blocks = ("update", "candidate")

        def update(self, x, u, states):
            z = self.gate("update", 1.0 - 3.0 * (x.update + u.update) + 0.5)
            return (z * states[0] + (1 - z) * self.candidate(x.candidate + u.candidate),)

    for start in (Chrono(60), "uniform_gates"):
        cell = built(Sharp, initialization=start, gate_activation="hard_sigmoid")
        plain = built("mgu", initialization=start, gate_activation="hard_sigmoid")
        z = values(cell.gate_activations["update"], 1.5 - 3.0 * bias_of(cell, "update"))
        f = values(plain.gate_activations["forget"], bias_of(plain, "forget"))
        np.testing.assert_allclose(z, 1 - f, atol=1e-4)


def test_a_start_is_all_of_the_bias_of_its_gate():
    """Of the two biases of a GRU."""
    b, c = built("gru", initialization=Chrono(9), bias_initializer="ones").biases
    plain, _ = built("gru", initialization=Chrono(9)).biases
    np.testing.assert_array_equal(b[:UNITS], plain[:UNITS])
    np.testing.assert_array_equal(c, np.repeat([0, 1, 1], UNITS))
    np.testing.assert_array_equal(b[UNITS:], np.ones(2 * UNITS))


def test_the_layer_says_how_its_gates_start():
    assert "initialization=Chrono(longest=9" in kg.GatedRNN(4, initialization=Chrono(9)).explain()
    assert "start" not in kg.GatedRNN(4).explain()


def test_weights_that_are_copied_have_their_start():
    with pytest.raises(ValueError, match=r"`initialization` would do nothing.*Chrono\(longest=9"):
        kg.from_keras(keras.layers.GRU(3), initialization=Chrono(9))


def test_a_search_starts_only_cells_with_gates_elsewhere():
    cells = space.cell_options({"gru": "gru", "simple": "simple"}, {"initialization": Chrono(9)})
    assert cells == {"gru": {"initialization": Chrono(9)}, "simple": {}}
    alone = space.cell_options({"simple": "simple"}, {"initialization": Chrono(9)})
    assert alone == {"simple": {"initialization": Chrono(9)}}  # which it refuses
