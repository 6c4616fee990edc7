"""Every distinct model of a search space once: what counts is what a build asks for."""

import collections
import doctest
import itertools
import json
import random

import keras
import keras_tuner
import numpy as np
import pytest
from helpers import BACKEND

from keras_gates import tuning
from keras_gates.tuning import distinct, oracles, records
from keras_gates.tuning.distinct import Noted

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough")

X = np.linspace(-1, 1, 8, dtype="float32").reshape(-1, 1)
WIDTHS = [4, 8, 16]


def dense():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)  # quicker than tracing
    return model


# Each space: a function of hp that returns what the model is made of, and all that there is.


def scoped(hp):
    layers = hp.Int("layers", 1, 3)
    found = []
    for i in range(3):
        with hp.conditional_scope("layers", list(range(i + 1, 4))):
            if layers > i:
                found.append(hp.Choice(f"units_{i}", WIDTHS))
    return found


def loop(hp):
    return [hp.Choice(f"units_{i}", WIDTHS) for i in range(hp.Int("layers", 1, 3))]


def loop_from_the_most(hp):
    return [hp.Choice(f"units_{i}", WIDTHS) for i in range(hp.Int("layers", 1, 3, default=3))]


def loop_then_more(hp):
    return [*loop(hp), hp.Boolean("bias")]


def nested(hp):
    kind = hp.Choice("kind", ["none", "one", "two"])
    found = [kind]
    with hp.conditional_scope("kind", ["one", "two"]):
        if kind != "none":
            drop = hp.Boolean("drop")
            found.append(drop)
            with hp.conditional_scope("drop", [True]):
                if drop:
                    found.append(hp.Choice("share", [0.1, 0.2]))
    with hp.conditional_scope("kind", ["two"]):
        if kind == "two":
            found.append(hp.Choice("second", WIDTHS))
    return found


def nested_without_scopes(hp):
    found = [hp.Choice("kind", ["none", "one", "two"])]
    if found[0] != "none":
        found.append(hp.Boolean("drop"))
        if found[-1]:
            found.append(hp.Choice("share", [0.1, 0.2]))
        if found[0] == "two":
            found.append(hp.Choice("second", WIDTHS))
    return found


def sometimes(hp):
    """Hyperparameters whose values decide which others there are, in either order."""
    order = hp.Choice("order", ["ab", "ba"])
    first = hp.Choice(order[0], [1, 2, 3])
    return [order, first, hp.Choice(order[1], [1, 2, 3]) if first == 2 else None]


def in_fit(hp):
    """Asked for when the model is fitted, for some models alone."""
    return [hp.Choice("gate", ["a", "b"])]


LOOP = [list(c) for n in (1, 2, 3) for c in itertools.product(WIDTHS, repeat=n)]
NESTED = [
    ["none"],
    *(["one", False], *(["one", True, share] for share in (0.1, 0.2))),
    *(["two", False, width] for width in WIDTHS),
    *(["two", True, share, width] for share in (0.1, 0.2) for width in WIDTHS),
]
SPACES = {
    scoped: LOOP,
    loop: LOOP,
    loop_from_the_most: LOOP,
    loop_then_more: [[*c, b] for c in LOOP for b in (False, True)],
    nested: NESTED,
    nested_without_scopes: NESTED,
    sometimes: [
        [order, first, second]
        for order in ("ab", "ba")
        for first in (1, 2, 3)
        for second in ((1, 2, 3) if first == 2 else [None])
    ],
    in_fit: [["a", 8], ["a", 16], ["b"]],
}  # fmt: skip


class Counted(keras_tuner.HyperModel):
    """Notes the model of every fit, and fits none."""

    model = dense()

    def __init__(self, space):
        super().__init__()
        self.space, self.fitted = space, []

    def build(self, hp):
        self.found = self.space(hp)
        return self.model

    def fit(self, hp, model, *args, **kwargs):
        if self.space is in_fit and self.found[0] == "a":
            self.found.append(hp.Choice("batch", [8, 16]))
        self.fitted.append(self.found)
        return 1.0


def search(make, space, folder, **options):
    class Quick(make):
        def _try_build(self, hp):  # KerasTuner's own collects garbage
            return self._build_hypermodel(hp)

    hypermodel = Counted(space)
    if make is tuning.Tuner:
        tuner = Quick(options.pop("oracle"), hypermodel, directory=folder)
    else:
        tuner = Quick(hypermodel, "loss", directory=folder, seed=0, **options)
    tuner.search(X, X, verbose=0)
    return tuner, hypermodel.fitted


def assert_each_once(fitted, expected):
    counts = collections.Counter(map(str, fitted))
    assert counts == dict.fromkeys(map(str, expected), 1)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.__name__)
def test_a_grid_search_fits_every_model_once_and_ends(space, tmp_path):
    tuner, fitted = search(tuning.GridSearch, space, tmp_path)
    assert_each_once(fitted, SPACES[space])
    assert tuner.oracle.expected_trials == len(SPACES[space])


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.__name__)
def test_a_random_search_fits_every_model_once_and_ends(space, tmp_path):
    _, fitted = search(tuning.RandomSearch, space, tmp_path, max_trials=1000)
    assert_each_once(fitted, SPACES[space])


@pytest.mark.parametrize("make", [tuning.GridSearch, tuning.RandomSearch])
@pytest.mark.parametrize("space", [loop_then_more, nested_without_scopes, in_fit])
def test_a_search_that_goes_on_fits_the_other_models(make, space, tmp_path):
    _, first = search(make, space, tmp_path, max_trials=2)
    assert len(first) == 2
    _, second = search(make, space, tmp_path, max_trials=5)
    _, third = search(make, space, tmp_path, max_trials=1000)
    assert_each_once([*first, *second, *third], SPACES[space])


def test_bayesian_optimization_and_hyperband_try_no_model_twice(tmp_path):
    pytest.importorskip("sklearn")
    _, fitted = search(tuning.BayesianOptimization, nested_without_scopes, tmp_path / "b",
                       max_trials=6, num_initial_points=4)  # fmt: skip
    assert len(set(map(str, fitted))) == len(fitted) == 6
    tuner, _ = search(tuning.Hyperband, loop, tmp_path / "h", max_epochs=4, factor=2)
    begun = [t for t in tuner.oracle.trials.values() if "tuner/trial_id" not in t.hyperparameters]
    of = [tuple(t.hyperparameters.get(n) for n in t.read) for t in begun]
    assert len(set(of)) == len(of) > 5


def test_optuna_tries_no_model_twice(tmp_path):
    pytest.importorskip("optuna")
    oracle = tuning.OptunaOracle("loss", 1000, seed=0)
    _, fitted = search(tuning.Tuner, nested_without_scopes, tmp_path, oracle=oracle)
    assert_each_once(fitted, NESTED)


def test_models_that_are_fitted(tmp_path):
    """With KerasTuner's own way to build and fit."""
    fitted = []

    def build(hp):
        fitted.append(tuple(loop(hp)))
        return dense()

    tuner = tuning.GridSearch(build, "loss", directory=tmp_path, max_trials=6)
    del fitted[:]  # those that look for hyperparameters
    tuner.search(X, X, verbose=0)
    assert fitted == [(4,), (8,), (16,), (4, 4), (4, 8), (4, 16)]


def test_a_build_that_fails_is_not_tried_again_with_what_it_did_not_ask_for(tmp_path):
    def build(hp):
        layers = hp.Int("layers", 1, 3)
        if layers == 3:
            raise ValueError("too deep")
        return [hp.Choice(f"units_{i}", WIDTHS) for i in range(layers)]

    tuner, _ = search(tuning.GridSearch, build, tmp_path)
    outcomes = [t.outcome for t in records.read_search(tuner.project_dir).trials]
    assert collections.Counter(outcomes) == {"finished": 3 + 9, "raised": 1}


def test_the_record_has_what_a_model_was_made_of_alone(tmp_path):
    tuner, _ = search(tuning.GridSearch, loop, tmp_path)
    for trial in records.read_search(tuner.project_dir).trials:
        units = {f"units_{i}" for i in range(trial.values["layers"])}
        assert set(trial.values) == {"layers", *units}
    effects = [e for e in tuning.search_report(tuner).effects if e.choice == "units_2"]
    assert [e.ended for e in effects] == [9, 9, 9]


def test_a_search_from_before_this_was_noted_goes_on(tmp_path):
    """Its trials count with all their values."""
    _, first = search(tuning.GridSearch, scoped, tmp_path, max_trials=3)
    for path in tmp_path.glob("*/trial_*/trial.json"):
        state = json.loads(path.read_text())
        assert state.pop("read")
        path.write_text(json.dumps(state))
    _, second = search(tuning.GridSearch, scoped, tmp_path)
    assert_each_once([*first, *second], LOOP)


def random_space(rng, depth=4):
    """A build whose values decide what it asks for next: a random tree of (name, next ones)."""

    def node(level):
        if level == depth or rng.random() < 0.2:
            return None
        return rng.choice("abcdef"), [node(level + 1) for _ in range(rng.randint(1, 3))]

    tree = node(0) or ("a", [None])

    def build(hp):
        at, path = tree, {}
        while at is not None:
            name, below = at
            if name not in path:
                path[name] = hp.Choice(name, [0, 1, 2])
            at = below[path[name] % len(below)]
        return tuple(path.items())

    return build, tree


@pytest.mark.parametrize("seed", range(30))
def test_random_trees_of_builds_are_searched_whole(seed):
    """Judged by a walk of its own through the tree."""
    rng = random.Random(seed)
    build, tree = random_space(rng)

    def models(at, path):
        if at is None:
            return {tuple(path.items())}
        name, below = at
        values = [path[name]] if name in path else range(3)
        return set().union(*(models(below[v % len(below)], {**path, name: v}) for v in values))

    expected = models(tree, {})
    space, tried, built = keras_tuner.HyperParameters(), [], []
    while (values := distinct.Models(tried).untried(space.space)) is not None:
        hp = space.copy()
        hp.values = dict(values)
        assert hp.values not in distinct.Models(tried)
        hp = distinct.noting(hp)
        built.append(build(hp))
        read = hp.values.read
        tried.append(distinct.Tried(hp.values.copy(), read))
        assert tried[-1].values in distinct.Models(tried)
        space.merge([h for h in hp.space if not space._exists(h.name, h.conditions)])
        assert len(built) <= len(expected)
    assert len(built) == len(set(built)) == len(expected)
    assert set(built) == expected
    assert distinct.Models(tried).count(space.space) == len(expected)


def test_what_runs_elsewhere_is_waited_for_where_it_could_be_the_same_model(tmp_path):
    oracle = oracles.GridSearchOracle("loss")
    oracle._set_project_dir(tmp_path, "search")
    oracle._display.verbose = 0
    for name, values in {"layers": [1, 2], "units_0": WIDTHS, "units_1": WIDTHS}.items():
        oracle.hyperparameters.Choice(name, values)

    def begun(worker):
        trial = oracle.create_trial(worker)
        values = trial.hyperparameters.values
        return trial.trial_id, [values.get(name) for name in ("layers", "units_0", "units_1")]

    name, values = begun("a")
    assert values == [1, 4, 4]
    oracle.note_read(name, ["layers", "units_0"])
    assert begun("b")[1] == [1, 8, 4]
    assert begun("c")[1] == [1, 16, 4]
    name, values = begun("d")
    assert values == [2, 4, 4]
    # Nobody knows yet whether a model of two layers asks for more.
    assert oracle.populate_space("4")["status"] == "IDLE"
    oracle.note_read(name, ["layers", "units_0", "units_1"])
    assert begun("e")[1] == [2, 4, 8]
    # On the way down it is known where others are.
    assert [begun(worker)[1] for worker in "fg"] == [[2, 4, 16], [2, 8, 4]]
    assert [begun("h")[1]] == [[2, 16, 4]]
    assert oracle.populate_space("8")["status"] == "IDLE"


def test_values_note_what_was_asked_for():
    hp = keras_tuner.HyperParameters()
    for name in "abcdef":
        hp.Choice(name, [1, 2])
    with hp.conditional_scope("f", [2]):
        hp.Choice("g", [1, 2])
    seen = distinct.noting(hp)
    seen.Choice("b", [1, 2])
    assert "h" not in seen
    assert seen.get("d") == seen["d"] == seen.values.get("d") == 1
    with seen.conditional_scope("f", [2]):
        assert seen.Choice("g", [1, 2]) is None
    assert seen.values.read == ["b", "h", "d", "f"]
    assert seen.Choice("new", [1, 2]) == 1
    assert seen.values.read[4:] == ["new"]
    unpacked = lambda values: {**values}  # noqa: E731
    for ask in (dict, list, unpacked, Noted.items, Noted.copy, Noted.values):
        seen = distinct.noting(hp)
        assert seen.values == hp.values
        assert seen.values.read == []
        tuple(ask(seen.values))
        assert set(seen.values.read) == set("abcdef")
    assert hp.values == dict.fromkeys("abcdef", 1)


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(distinct)
    assert result.attempted > 0
    assert result.failed == 0
