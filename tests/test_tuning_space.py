"""The search space: what is drawn can work, and nothing that can work is left out."""

import doctest
import functools
import importlib.util
import itertools

import keras
import keras_tuner
import numpy as np
import pytest
from helpers import MGUCell, leave_out_for_time, run_python

import keras_gates as kg
from keras_gates.cells import CELLS
from keras_gates.tuning import hypermodel as hypermodels
from keras_gates.tuning import space
from keras_gates.tuning.hypermodel import GatedRNNHyperModel
from keras_gates.tuning.space import CANDIDATES, GATES, activation_space

L1, INITIALIZER = "activation_l1", "recurrent_initializer"
# Of what can be chosen beside the activations, nothing.
PLAIN = {"grad_clip_norm": None, L1: 0.0, INITIALIZER: "orthogonal", "initialization": None}


@keras.saving.register_keras_serializable(package="test_space")
def low_gate(x):
    return 0.4 * keras.ops.sigmoid(x)


def searched(tmp_path, build, count=60, tuner=keras_tuner.RandomSearch):
    """Pairs of the values that a tuner draws and what `build` makes of them."""
    search = tuner(
        build, objective="val_loss", max_trials=count, seed=3, directory=tmp_path, overwrite=True
    )
    search.oracle.verbose = 0
    found = []
    for number in range(count):
        trial = search.oracle.create_trial("tuner")
        if trial.status == "STOPPED":
            break
        found.append((dict(trial.hyperparameters.values), build(trial.hyperparameters)))
        search.oracle.update_trial(trial.trial_id, {"val_loss": float(number % 7)})
        trial.status = "COMPLETED"
        search.oracle.end_trial(trial)
    names = [hp.name for hp in search.oracle.get_space().space]
    assert len(set(names)) == len(names)  # KerasTuner loses values of those it has twice
    return found


def pairs(found):
    return {(c["cell"], c.get("gate_activation"), c["candidate_activation"]) for _, c in found}


# A gate that carries the state on must stay in [0, 1]. GRU and MGU then weigh old against new, so
# that a candidate of slope 1 cannot make the state grow. In an LSTM c' = f * c + i * g can.
GATES_TRIED, CANDIDATES_TRIED = (
    ("sigmoid", "tanh", "relu", "relu_gate"),
    ("tanh", "relu", "exponential"),
)
STABLE = {
    "gru": {("sigmoid", "tanh"), ("sigmoid", "relu"), ("relu_gate", "tanh"), ("relu_gate", "relu")},
    "lstm": {("sigmoid", "tanh"), ("relu_gate", "tanh"), ("tanh", "tanh")},
    "simple": {(None, "tanh"), (None, "relu")},
}
STABLE[MGUCell] = STABLE["gru"]


def stable(cell):
    return {(cell, *pair) for pair in STABLE[cell]}


class GatedAlone(kg.GatedCell):
    """A cell that has no candidate, and a gate that it never calls."""

    blocks = ("forget", "reset", "content")
    gates = ("forget", "reset")

    def update(self, x, u, states):
        f = self.gate("forget", x.forget + u.forget)
        return (f * states[0] + (1 - f) * keras.ops.tanh(x.content + u.content),)


class TestActivations:
    def test_of_what_a_cell_never_calls_there_is_no_choice(self):
        hp = keras_tuner.HyperParameters()
        drawn = activation_space(hp, GatedAlone, GATES_TRIED, CANDIDATES_TRIED)
        assert (drawn["gate_activation"], drawn["candidate_activation"]) == ("sigmoid", "tanh")
        assert "candidate_activation" not in [one.name for one in hp.space if len(one.values) > 1]
        kg.GatedRNN(4, **drawn)

    @pytest.mark.parametrize("cell", list(STABLE))
    def test_all_pairs_that_are_not_unstable_are_drawn_and_no_others(self, tmp_path, cell):
        def build(hp):
            return activation_space(hp, cell, GATES_TRIED, CANDIDATES_TRIED)

        found = searched(tmp_path, build)
        assert pairs(found) == stable(cell)
        for values, chosen in found:
            assert values["candidate_activation"] == chosen["candidate_activation"]
            assert values.get("gate_activation") == chosen.get("gate_activation")

    def test_unstable_pairs_are_drawn_when_asked_for(self, tmp_path):
        def build(hp):
            return activation_space(
                hp, "gru", GATES_TRIED, CANDIDATES_TRIED, unstable=True, **PLAIN
            )

        found = searched(tmp_path, build, count=100)
        expected = set(itertools.product(["gru"], GATES_TRIED, CANDIDATES_TRIED))
        assert pairs(found) == expected

    def test_gates_depend_on_the_candidate_where_they_must(self, tmp_path):
        gates, candidates = ("test_space>low_gate", "sigmoid"), ("tanh", "relu", "elu")

        def build(hp):
            return activation_space(hp, "lstm", gates, candidates, **PLAIN)

        found = searched(tmp_path, build)
        expected = {(gates[0], "tanh"), (gates[1], "tanh"), (gates[0], "relu"), (gates[0], "elu")}
        assert pairs(found) == {("lstm", *pair) for pair in expected}
        for values, chosen in found:
            prefix = "tanh" if chosen["candidate_activation"] == "tanh" else "relu+elu"
            shown = chosen["gate_activation"].replace(">", ".")
            assert values[f"{prefix}/gate_activation"] == shown
        names = {name for values, _ in found for name in values}
        assert names == {
            "cell", "candidate_activation", "tanh/gate_activation", "relu+elu/gate_activation",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("cell", "gates", "candidates", "option"),
        [
            ("gru", ("sigmoid", "tanh"), ("tanh",), {"grad_clip_norm": 0.5}),
            ("lstm", ("sigmoid",), ("tanh", "relu"), {"output_activation": "tanh"}),
        ],
    )
    def test_pairs_are_judged_with_the_given_options(
        self, tmp_path, cell, gates, candidates, option
    ):
        def build(hp):
            return activation_space(hp, cell, gates, candidates, **option)

        found = searched(tmp_path, build, count=40)
        assert pairs(found) == set(itertools.product([cell], gates, candidates))
        assert all(option.items() <= chosen.items() for _, chosen in found)

    def test_several_cells_have_choices_of_their_own(self, tmp_path):
        def build(hp):
            return activation_space(hp, list(STABLE), GATES_TRIED, CANDIDATES_TRIED)

        found = searched(tmp_path, build, count=80)
        assert pairs(found) == set().union(*map(stable, STABLE))
        for values, chosen in found:
            kg.GatedRNN(3, **chosen)
            prefixes = {name.rpartition("/")[0] for name in values} - {""}
            (prefix,) = prefixes
            cell = chosen["cell"]
            assert (cell if isinstance(cell, str) else cell.__name__) in prefix.split("+")

    def test_cells_with_the_same_space_share_it(self):
        hp = keras_tuner.HyperParameters()
        activation_space(hp, ["gru", MGUCell], candidates=("tanh",))
        assert set(hp.values) == {
            "cell", "candidate_activation", "gate_activation", "initialization",
        }  # fmt: skip

    def test_the_default_is_sound_and_keras_own_where_that_is_offered(self):
        for cell in ("gru", "lstm", "simple", MGUCell):
            chosen = activation_space(keras_tuner.HyperParameters(), cell, GATES[:2])
            assert chosen["candidate_activation"] == "tanh"
            assert chosen.get("gate_activation", "sigmoid") == "sigmoid"
            found = {k: v for k, v in chosen.items() if k.endswith("activation") or k == "cell"}
            assert kg.check_activations(**found).level == "sound"

    def test_the_default_is_sound_in_whatever_order_they_are_given(self):
        hp = keras_tuner.HyperParameters()
        chosen = activation_space(
            hp, "gru", ("relu", "relu_gate", "tanh_gate"), ("relu", "softsign")
        )
        assert chosen["gate_activation"] == "tanh_gate"
        assert chosen["candidate_activation"] == "softsign"

    def test_in_a_gru_all_that_is_offered_by_default_can_be_drawn(self):
        hp = keras_tuner.HyperParameters()
        activation_space(hp)
        offered = {one.name: one.values for one in hp.space}
        assert offered["gate_activation"] == list(GATES)
        assert offered["candidate_activation"] == list(CANDIDATES)

    def test_one_name_is_fixed_and_noted(self):
        hp = keras_tuner.HyperParameters()
        chosen = activation_space(hp, "gru", "hard_sigmoid", "relu", **PLAIN)
        assert chosen == {
            "cell": "gru",
            "gate_activation": "hard_sigmoid",
            "candidate_activation": "relu",
            **PLAIN,
        }
        assert hp.values == {name: chosen[name] for name in list(chosen)[:3]}

    def test_layers_in_scopes_of_their_own(self, tmp_path):
        def build(hp):
            with hp.name_scope("layer_1"):
                cells, candidates = ["gru", "lstm"], ("tanh", "softsign", "elu")
                first = activation_space(hp, cells, GATES[:2], candidates)
            with hp.name_scope("layer_2"):
                second = activation_space(hp, "simple")
            return first, second

        found = searched(tmp_path, build)
        assert len({(first["cell"], first["candidate_activation"]) for _, (first, _) in found}) == 5
        for values, (first, second) in found:
            assert first["cell"] == values["layer_1/cell"]
            prefix = f"layer_1/{first['cell']}/"
            assert first["candidate_activation"] == values[f"{prefix}candidate_activation"]
            assert first["gate_activation"] == values[f"{prefix}gate_activation"]
            assert second["candidate_activation"] == values["layer_2/candidate_activation"]
            assert "gate_activation" not in second

    def test_under_a_condition_of_the_callers(self, tmp_path):
        def build(hp):
            hp.Choice("model", ["dense", "recurrent"])
            with hp.conditional_scope("model", ["recurrent"]):
                return activation_space(hp)

        for values, chosen in searched(tmp_path, build, count=60):
            recurrent = values["model"] == "recurrent"
            assert bool(chosen) == recurrent == ("candidate_activation" in values)

    def test_grid_search_takes_every_combination_once(self, tmp_path):
        def build(hp):
            return activation_space(
                hp, ["gru", "simple"], ("sigmoid", "relu"), ("tanh", "relu"), grad_clip_norm=None
            )

        found = searched(tmp_path, build, count=100, tuner=keras_tuner.GridSearch)
        # tanh; relu with four strengths; in the GRU both with two starts of its gates, in the
        # simple cell relu with two initializers.
        assert len(found) == (1 + 4) * 2 + (1 + 4 * 2)
        assert len({tuple(sorted(values.items())) for values, _ in found}) == len(found)
        assert found[0][1]["candidate_activation"] == "tanh"

    def test_bayesian_optimization_draws_from_the_same_space(self, tmp_path):
        def build(hp):
            return activation_space(hp, "gru", GATES_TRIED, CANDIDATES_TRIED, grad_clip_norm=None)

        tuner = functools.partial(keras_tuner.BayesianOptimization, num_initial_points=3)
        found = searched(tmp_path, build, count=5, tuner=tuner)
        assert len(found) == 5
        assert pairs(found) <= stable("gru")

    def test_judging_leaves_the_seeds_of_the_model_alone(self):
        def weights():
            keras.utils.set_random_seed(11)
            arguments = activation_space(keras_tuner.HyperParameters(), "gru")
            layer = kg.GatedRNN(3, **arguments)
            layer.build((None, None, 2))
            return layer.get_weights()

        space._judged.cache_clear()
        first, second = weights(), weights()
        assert space._judged.cache_info().hits >= len(GATES) * len(CANDIDATES)
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_options_that_cannot_be_hashed(self):
        identity = {"class_name": "Identity", "config": {"gain": 0.5}}
        hp = keras_tuner.HyperParameters()
        assert activation_space(hp, "gru", recurrent_initializer=identity)[INITIALIZER] is identity


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    candidates = ("tanh", "sigmoid", "relu", "elu", "softplus", "hard_sigmoid")
    return {
        cell: searched(
            tmp_path_factory.mktemp(cell),
            lambda hp, cell=cell: activation_space(hp, cell, "sigmoid", candidates),
            count=150,
        )
        for cell in ("gru", "simple")
    }


class TestWhatGoesWithThem:
    @staticmethod
    def with_it(found, argument):
        """The candidates with which an argument is chosen, always or never."""
        every = {chosen["candidate_activation"] for _, chosen in found}
        some = {chosen["candidate_activation"] for _, chosen in found if argument in chosen}
        never = {chosen["candidate_activation"] for _, chosen in found if argument not in chosen}
        return some, every, never

    def test_l1_is_for_candidates_that_are_unbounded_or_sparse(self, found):
        for cell in ("gru", "simple"):
            some, every, never = self.with_it(found[cell], L1)
            assert some == {"relu", "elu", "softplus", "hard_sigmoid"}
            assert never == every - some == {"tanh", "sigmoid"}
            values = {chosen[L1] for _, chosen in found[cell] if L1 in chosen}
            assert values == {0.0, 1e-5, 1e-4, 1e-3}

    def test_identity_is_for_relu_and_its_like_without_gates(self, found):
        some, every, never = self.with_it(found["simple"], INITIALIZER)
        assert some == {"relu", "softplus"}
        assert never == every - some
        assert {c[INITIALIZER] for _, c in found["simple"] if INITIALIZER in c} == {
            "orthogonal",
            "identity",
        }
        assert not self.with_it(found["gru"], INITIALIZER)[0]

    def test_gates_start_elsewhere_where_they_can(self, found):
        some, every, never = self.with_it(found["gru"], "initialization")
        assert (some, never) == (every, set())
        assert {c["initialization"] for _, c in found["gru"]} == {"keras", "uniform_gates"}
        assert not self.with_it(found["simple"], "initialization")[0]
        for cell, options in (
            ("gru", {"use_bias": False}),  # without the biases there is nothing to set
            ("gru", {"initialization": kg.initializers.Chrono(9)}),
            ("n_brc", {"gates": ("tanh",), "unstable": True}),  # values below 0
        ):
            hp = keras_tuner.HyperParameters()
            chosen = activation_space(hp, cell, **options)
            assert chosen.get("initialization") == options.get("initialization")
            assert not any(name.endswith("initialization") for name in hp.values)

    def test_starts_to_choose_from(self):
        starts = [None, "uniform_gates", kg.initializers.Chrono(9, "uniform")]
        hp = keras_tuner.HyperParameters()
        chosen = activation_space(hp, "lstm", initialization=starts)
        assert chosen["initialization"] == hp.get("initialization") == "keras"
        hp.values["initialization"] = "Chrono(9, 'uniform')"
        assert activation_space(hp, "lstm", initialization=starts)["initialization"] is starts[2]
        choices = next(p for p in hp.space if p.name == "initialization").values
        assert choices == ["keras", "uniform_gates", "Chrono(9, 'uniform')"]
        for bad in ([], [3]):
            with pytest.raises(ValueError, match=r"`initialization` must be a start.* Received: "):
                activation_space(keras_tuner.HyperParameters(), initialization=bad)

    def test_clipping_is_for_unbounded_candidates_and_cells_without_gates(self, found):
        assert self.with_it(found["gru"], "grad_clip_norm")[0] == {"relu", "elu", "softplus"}
        some, every, _ = self.with_it(found["simple"], "grad_clip_norm")
        assert some == every

    def test_a_bound_comes_with_its_place(self, found):
        for cell in ("gru", "simple"):
            places = set()
            for values, chosen in found[cell]:
                assert ("grad_clip_norm" in chosen) == ("grad_clip_at" in chosen)
                assert ("grad_clip_norm" in chosen) == (values.get("clipping", "none") != "none")
                if "grad_clip_at" in chosen:
                    assert chosen["grad_clip_at"] == values["clipping"]
                    assert chosen["grad_clip_norm"] in (0.03, 0.1, 0.3, 1.0)
                places.add(values.get("clipping"))
            assert places >= {"none", "state", "preactivation"}

    def test_clipping_is_for_all_candidates_of_unstable_pairs(self):
        for unstable in (False, True):
            hp = keras_tuner.HyperParameters()
            activation_space(hp, "gru", ("sigmoid", "tanh"), "tanh", unstable=unstable)
            assert ("clipping" in hp.values) == unstable

    def test_what_is_given_is_no_choice(self, tmp_path):
        given = {"grad_clip_value": 0.1, L1: 1e-2, INITIALIZER: "identity"}
        found = searched(tmp_path, lambda hp: activation_space(hp, "simple", **given))
        for values, chosen in found:
            assert set(values) == {"cell", "candidate_activation"}
            assert given.items() <= chosen.items()
            assert not {"grad_clip_norm", "grad_clip_at"} & chosen.keys()

    def test_no_clipping_under_float16_which_refuses_it(self):
        keras.config.set_dtype_policy("mixed_float16")
        hp = keras_tuner.HyperParameters()
        activation_space(hp, "simple")
        assert "clipping" not in hp.values

    def test_an_argument_goes_to_the_cells_that_have_it(self, tmp_path):
        def build(hp):
            return activation_space(
                hp, ["gru", "lstm"], "sigmoid", reset_after=False, use_bias=False
            )

        for _, chosen in searched(tmp_path, build, count=40):
            assert ("reset_after" in chosen) == (chosen["cell"] == "gru")
            assert chosen["use_bias"] is False

    def test_units_are_doubled_for_one_sided_candidates(self, tmp_path):
        candidates = ("tanh", "relu", "elu", "sigmoid", "softplus")

        def build(hp):
            units = hp.Choice("units", [5, 6])
            return [
                activation_space(hp, "gru", candidates=candidates, units=units, **extra)
                for extra in ({}, {"double_one_sided": True})
            ]

        seen = set()
        for values, (same, doubled) in searched(tmp_path, build):
            one_sided = values["candidate_activation"] in ("relu", "sigmoid", "softplus")
            assert same["units"] == values["units"]
            assert doubled["units"] == values["units"] * (2 if one_sided else 1)
            seen.add(values["candidate_activation"])
        assert seen == set(candidates)


SPACE_ERRORS = [
    ({"cell": "gruu"}, ValueError, "`cell` must be one of .* did you mean 'gru'"),
    ({"cell": kg.GRUCell(3)}, ValueError, "`cell` must be one of .* a subclass"),
    ({"cell": []}, ValueError, "`cell` must name at least one cell"),
    (
        {"gates": "sigmod"},
        ValueError,
        "`gates` must be .* 'sigmod'; did you mean 'sigmoid'",
    ),
    ({"gates": ()}, ValueError, r"`gates` must be .* Received: gates=\(\)"),
    ({"candidates": ["tanh", "rleu"]}, ValueError, "`candidates` must .* mean 'relu'"),
    ({"candidates": ["softmax"]}, ValueError, "`candidates` must be .* elementwise"),
    ({"candidates": [low_gate]}, ValueError, "KerasTuner keeps choices as text"),
    (
        {"gates": "relu"},
        ValueError,
        "is unstable in the cell 'gru': relu with tanh, because",
    ),
    (
        {"cell": ["gru", "lstm"], "candidates": "relu"},
        ValueError,
        "is unstable in the cell 'lstm': sigmoid with relu, because .* unstable=True",
    ),
    (
        {"cell": "simple", "candidates": "exponential"},
        ValueError,
        "is unstable in the cell 'simple': exponential, because",
    ),
    ({"double_one_sided": True}, ValueError, "`double_one_sided` needs .* `units`"),
    (
        {"gate_activation": "tanh"},
        TypeError,
        "takes no argument `gate_activation`.*`gates`",
    ),
    (
        {"candidate_activation": "tanh"},
        TypeError,
        "takes no argument `candidate_activation`.*`candidates`",
    ),
    ({"reset_afer": True}, TypeError, "takes no argument `reset_afer`.*'reset_after'"),
    ({"output_activation": "tanh"}, TypeError, "it belongs to LSTMCell"),
    ({"activation_l1": -1}, ValueError, "`activation_l1` must be a finite number >= 0"),
]
MODEL_ERRORS = [
    ({"task": "regresion"}, ValueError, "`task` must be .* mean 'regression'"),
    ({"input_shape": 12}, ValueError, "`input_shape` must be .time, features.*=12"),
    ({"input_shape": (None,)}, ValueError, "`input_shape` must be .*only a `stem`"),
    ({"input_shape": (5, None)}, ValueError, "`input_shape` must be"),
    ({"outputs": 0}, ValueError, "`outputs` must be a positive integer"),
    ({"outputs": 1}, ValueError, "`outputs` must be the number of classes, at least 2"),
    ({"layers": 0}, ValueError, "`layers` must be a positive integer"),
    ({"units": [32, 0.5]}, ValueError, "`units` must be a positive integer"),
    ({"units": []}, ValueError, "`units` must be a value, or a list"),
    ({"dropout": 1.0}, ValueError, r"`dropout` must be in \[0, 1\)"),
    ({"bidirectional": "search"}, ValueError, "`bidirectional` must be True or False"),
    ({"learning_rate": [1e-3, 0]}, ValueError, "`learning_rate` must be a positive"),
    ({"cell": "rnn"}, ValueError, "`cell` must be one of"),
    ({"gates": "relu"}, ValueError, "unstable in the cell 'gru'"),
    ({"return_state": True}, TypeError, "takes no argument `return_state`"),
    ({"head": 3}, ValueError, "`head` must be a list of Keras layers, or a function"),
    ({"unit": 8}, TypeError, "^GatedRNNHyperModel takes no argument `unit`.*'units'"),
    ({"stem": ["dense"]}, ValueError, "`stem` must be a list of Keras layers"),
    (
        {"stem": [], "input_shape": (None,), "mask_value": 0.0},
        ValueError,
        "`mask_value` is looked for in all features",
    ),
]
DATA_ERRORS = [
    ("classify", 6, np.zeros(6, int), "`task` must be one of"),
    ("classification", 6, np.zeros(6), r"integers, \(samples,\).*float64.*y.astype\(int\)"),
    ("classification", 6, np.zeros(5, int), r"`y` must be .*y of shape \(5,\)"),
    ("classification", 6, np.eye(6, dtype=int), r"one-hot labels take y.argmax\(-1\)"),
    ("classification", 6, np.zeros((6, 1), int), r"Take y\[..., 0\]"),
    ("classification", 6, np.full(6, -1), "labels down to -1"),
    ("sequence", 6, np.full((6, 4), -1), "the least must be 0. The label of padding is one of"),
    ("classification", 6, np.zeros(6, int), "with one class alone"),
    ("classification", 6, np.array(list("abcabc")), "`y` must be integers"),
    ("classification", 0, np.zeros(0, int), "holds nothing"),
    ("sequence", 6, np.zeros(6, int), r"`y` must be integers, \(samples, time\)"),
    ("sequence", 6, np.zeros((6, 3), int), r"x of shape \(6, 4, 3\).*shape \(6, 3\)"),
    ("sequence", 6, np.zeros((6, 4, 2), int), "one-hot"),
    ("regression", 6, np.zeros((6, 4, 2)), r"numbers, \(samples,\) or"),
    ("regression", 6, np.zeros(4), r"`y` must be numbers"),
]


class TestErrors:
    def test_of_the_space(self):
        for arguments, error, message in SPACE_ERRORS:
            with pytest.raises(error, match=message):
                activation_space(keras_tuner.HyperParameters(), **arguments)

    def test_a_name_that_is_taken(self):
        hp = keras_tuner.HyperParameters()
        activation_space(hp, "gru")
        with pytest.raises(
            ValueError, match="'cell' has other values .* 'gru', .* 'lstm'.*name_sc"
        ):
            activation_space(hp, "lstm")

    def test_of_the_hypermodel(self):
        valid = {"task": "classification", "input_shape": (None, 3), "outputs": 2}
        for arguments, error, message in MODEL_ERRORS:
            with pytest.raises(error, match=message):
                GatedRNNHyperModel(**{**valid, **arguments})

    def test_parts_with_weights(self):
        trained = keras.layers.Dense(3)
        trained.build((None, 3))
        with pytest.raises(ValueError, match="`head` must be layers without weights.*'dense'"):
            GatedRNNHyperModel("regression", (None, 3), 3, head=trained)

    def test_a_part_that_returns_nothing(self):
        model = GatedRNNHyperModel("regression", (None, 3), 3, stem=lambda x, hp: None)
        with pytest.raises(ValueError, match="`stem` must return a tensor.*None"):
            model.build(keras_tuner.HyperParameters())

    def test_of_data(self):
        for task, samples, y, message in DATA_ERRORS:
            with pytest.raises(ValueError, match=message):
                GatedRNNHyperModel.from_data(np.zeros((samples, 4, 3)), y, task)

    def test_of_inputs(self):
        with pytest.raises(ValueError, match=r"`x` must be .*, with a `stem` .* shape \(4, 3\)"):
            GatedRNNHyperModel.from_data(np.zeros((4, 3)), np.arange(4), "classification")


SMALL = {"units": 4, "layers": 1, "dropout": 0.0, "learning_rate": 0.01}
DATA = {
    "classification": np.arange(12) % 3,
    "sequence": np.arange(12 * 5).reshape(12, 5) % 3,
    "regression": np.linspace(0, 1, 24).reshape(12, 2),
}


class TestHyperModel:
    @pytest.mark.parametrize("task", list(DATA))
    def test_trains(self, rng, task):
        x = rng.normal(size=(12, 5, 2)).astype("float32")
        hypermodel = GatedRNNHyperModel.from_data(x, DATA[task], task, **SMALL)
        model = hypermodel.build(keras_tuner.HyperParameters())
        history = model.fit(x, DATA[task], epochs=1, verbose=0).history
        assert np.isfinite(history["loss"]).all()
        assert ("mae" in history) == (task == "regression")
        shape = {"classification": (12, 3), "sequence": (12, 5, 3), "regression": (12, 2)}[task]
        predicted = keras.ops.convert_to_numpy(model(x))
        assert predicted.shape == shape
        assert np.allclose(predicted.sum(-1), 1, atol=1e-5) == (task != "regression")
        assert model.input_shape == (None, None, 2)
        assert model.inputs[0].name == "sequence"

    def test_every_choice_is_in_the_model(self, tmp_path):
        hypermodel = GatedRNNHyperModel(
            "classification", (None, 2), 3, units=(3, 5), candidates=("tanh", "relu"),
            layers=(1, 2), bidirectional=(False, True), dropout=(0, 0.5), learning_rate=(0.1, 0.01),
        )  # fmt: skip
        kinds = set()
        for values, model in searched(tmp_path, hypermodel.build, count=14):
            layers = [
                layer
                for layer in model.layers
                if isinstance(layer, (kg.GatedRNN, keras.layers.Bidirectional))
            ]
            assert len(layers) == values["layers"]
            for number, layer in enumerate(layers):
                assert isinstance(layer, keras.layers.Bidirectional) == values["bidirectional"]
                cell = getattr(layer, "forward_layer", layer).cell
                assert cell.units == values["units"]
                assert cell.dropout == values["dropout"]
                config = cell.get_config()
                expected = kg.activations.get(values["gate_activation"], "gate_activation")
                assert set(cell.gate_activations.values()) == {expected}
                assert config["candidate_activation"] == values["candidate_activation"]
                assert config["activation_l1"] == values.get(L1, 0.0)
                assert config["grad_clip_norm"] == values.get("grad_clip_norm")
                assert len(layer.output.shape) == (3 if number < len(layers) - 1 else 2)
            rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
            assert rate == pytest.approx(values["learning_rate"])
            kinds.add((values["layers"], bool(values["bidirectional"])))
        assert len(kinds) > 2

    def test_one_value_is_no_hyperparameter(self):
        hp = keras_tuner.HyperParameters()
        GatedRNNHyperModel("regression", (None, 2), 1, **SMALL).build(hp)
        assert set(hp.values) == {
            "cell", "candidate_activation", "gate_activation", "initialization",
        }  # fmt: skip

    def test_the_first_value_is_the_default(self):
        hp = keras_tuner.HyperParameters()
        given = {"units": (7, 3), "layers": (2, 1), "bidirectional": (True, False)}
        GatedRNNHyperModel("regression", (None, 2), 1, **given).build(hp)
        assert {name: (hp.values[name], not hp.values[name]) for name in given} == {
            "units": (7, False),
            "layers": (2, False),
            "bidirectional": (True, False),
        }
        (units,) = [one for one in hp.space if one.name == "units"]
        assert units.values == [3, 7]

    def test_options_reach_the_space(self):
        hypermodel = GatedRNNHyperModel(
            "regression", (None, 2), 1, candidates="relu", double_one_sided=True, use_bias=False,
            **SMALL,
        )  # fmt: skip
        model = hypermodel.build(keras_tuner.HyperParameters())
        cell = model.layers[1].cell
        assert (cell.units, cell.use_bias) == (8, False)

    def test_masked_steps_count_for_nothing(self, rng):
        x = rng.normal(size=(4, 6, 2)).astype("float32")
        y = rng.integers(3, size=(4, 6))
        x[:, 4:] = -1.0
        hypermodel = GatedRNNHyperModel.from_data(x, y, "sequence", mask_value=-1.0, **SMALL)
        model = hypermodel.build(keras_tuner.HyperParameters())
        other = y.copy()
        other[:, 4:] = (y[:, 4:] + 1) % 3
        first = model.evaluate(x, y, verbose=0)
        second = model.evaluate(x, other, verbose=0)
        short = model.evaluate(x[:, :4], y[:, :4], verbose=0)
        np.testing.assert_allclose(first[0], second[0], rtol=1e-6)
        if not keras.__version__.startswith("3.8."):  # in which metrics count masked steps
            np.testing.assert_allclose([first[1]] * 2, [second[1], short[1]], rtol=1e-6)

    def test_a_stem_and_a_head_of_layers_are_new_for_each_trial(self):
        tokens = np.array([[1, 2, 3], [4, 5, 0]])
        hypermodel = GatedRNNHyperModel.from_data(
            tokens, np.array([0.5, 1.5]), "regression",
            stem=keras.layers.Embedding(6, 4, mask_zero=True),
            head=[keras.layers.Dense(5, activation="relu"), keras.layers.Dense(1)],
            **SMALL,
        )  # fmt: skip
        first, second = (hypermodel.build(keras_tuner.HyperParameters()) for _ in range(2))
        assert first.input_shape == (None, None)
        assert [type(layer).__name__ for layer in first.layers if layer.weights] == [
            "Embedding", "GatedRNN", "Dense", "Dense",
        ]  # fmt: skip
        shared = {id(w) for w in first.weights} & {id(w) for w in second.weights}
        assert not shared
        assert first(tokens).shape == (2, 1)

    def test_a_stem_and_a_head_of_functions_can_choose(self):
        def stem(x, hp):
            return keras.layers.Conv1D(hp.Choice("filters", [6, 2]), 3, padding="same")(x)

        def head(x, hp):
            return keras.layers.Dense(3, "softmax")(keras.layers.Dropout(hp.Fixed("rate", 0.5))(x))

        hp = keras_tuner.HyperParameters()
        hypermodel = GatedRNNHyperModel("sequence", (None, 2), 3, stem=stem, head=head, **SMALL)
        model = hypermodel.build(hp)
        assert {"filters": 6, "rate": 0.5}.items() <= hp.values.items()
        assert model.output_shape == (None, None, 3)

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            ([keras.layers.Dense(16, "softmax")], r"shape \(None, 3\), as outputs=3 .* 16\)"),
            ([keras.layers.Dense(3)], "must return probabilities.*which has no activation"),
        ],
    )
    def test_a_head_that_the_loss_cannot_take_is_refused(self, head, message):
        hypermodel = GatedRNNHyperModel("classification", (None, 2), 3, head=head, **SMALL)
        with pytest.raises(ValueError, match=message):
            hypermodel.build(keras_tuner.HyperParameters())

    def test_a_search(self, tmp_path, rng):
        x = rng.normal(size=(12, 5, 2)).astype("float32")
        y = DATA["classification"]
        hypermodel = GatedRNNHyperModel.from_data(
            x, y, "classification", cell=["gru", "simple"], candidates=("tanh", "relu"), **SMALL
        )
        tuner = keras_tuner.RandomSearch(
            hypermodel, objective="val_loss", max_trials=1, seed=1, directory=tmp_path
        )
        names = {hp.name for hp in tuner.oracle.get_space().space}
        assert names >= {"cell", "gru/gate_activation", "simple/recurrent_initializer"}
        tuner.search(x, y, validation_data=(x, y), epochs=1, verbose=0)
        assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"]
        best = tuner.get_best_hyperparameters()[0]
        assert hypermodel.build(best).output_shape == (None, 3)


@pytest.mark.parametrize("public", [activation_space, GatedRNNHyperModel])
def test_the_example_of_every_public_name_runs(public):
    names = {"keras": keras, "keras_gates": kg, "numpy": np}
    (test,) = doctest.DocTestFinder(recurse=False).find(public, globs=names)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


def test_tasks_are_those_in_the_docstring():
    for task in hypermodels.TASKS:
        assert f'"{task}"' in GatedRNNHyperModel.__doc__


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_on_jax_tensorflow_is_not_imported(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    printed = run_python(
        """
        import sys
        import keras_tuner
        from keras_gates.tuning.hypermodel import GatedRNNHyperModel

        hypermodel = GatedRNNHyperModel("regression", (None, 2), 1, units=3)
        model = hypermodel.build(keras_tuner.HyperParameters())
        print(model.output_shape, "tensorflow" in sys.modules)
        """
    )
    assert printed.split("\n")[-2] == "(None, 1) False"


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_begins_as_it_is_by_default(name):
    """Its own activations are among what is offered, and come first where they are sound."""
    leave_out_for_time(name not in ("min_gru", "ind_rnn", "n_brc"))
    hp, usual = keras_tuner.HyperParameters(), CELLS[name](4)
    chosen = activation_space(hp, name)
    made = CELLS[name](4, **{n: v for n, v in chosen.items() if n != "cell"})
    assert made.gate_activations == usual.gate_activations
    if kg.check_activations(name).level == "sound":
        assert made.candidate_activation is usual.candidate_activation
    (offered,) = [h.values for h in hp.space if h.name == "candidate_activation"]
    assert CELLS[name].default_candidate_activation in offered
    if name == "n_brc":
        assert chosen["gate_activation"] == {"update": "sigmoid"}


def test_activations_that_are_named_are_all_there_is():
    hp = keras_tuner.HyperParameters()
    activation_space(hp, "min_gru", candidates=["tanh", "softsign"])
    (offered,) = [h.values for h in hp.space if h.name == "candidate_activation"]
    assert offered == ["tanh", "softsign"]
