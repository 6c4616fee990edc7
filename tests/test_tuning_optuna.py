"""Optuna as an oracle: judged by functions whose best values are known, and by real searches."""

import collections
import math
import os
import sys

import keras
import keras_tuner
import numpy as np
import optuna
import pytest

from keras_gates import tuning
from keras_gates.tuning import records, roles

COMPLETE, PRUNED, FAIL, RUNNING = (
    getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
)
X = np.linspace(-1, 1, 24, dtype="float32").reshape(-1, 1)
Y = 2 * X


def make(folder, declare=None, direction="min", max_trials=100, **options):
    """An oracle by itself, which goes on with what is in the folder."""
    objective = keras_tuner.Objective("score", direction)
    oracle = tuning.OptunaOracle(objective, max_trials, **options)
    oracle._set_project_dir(folder, "search")
    oracle._display.verbose = 0
    if declare is not None:
        declare(oracle.hyperparameters)
    if os.path.exists(oracle._get_oracle_fname()):
        oracle.reload()
    return oracle


def end(oracle, trial, score):
    if score is None:
        trial.status = "FAILED"
    else:
        oracle.update_trial(trial.trial_id, {"score": score})
        trial.status = "COMPLETED"
    oracle.end_trial(trial)


def drive(oracle, score_of, count):
    """Runs trials that train nothing; returns their values."""
    drawn = []
    for _ in range(count):
        trial = oracle.create_trial("tuner0")
        if trial.status == "STOPPED":
            break
        drawn.append(dict(trial.hyperparameters.values))
        end(oracle, trial, score_of(drawn[-1]))
    return drawn


def report(oracle, trial, epoch, value):
    """Whether the oracle ends the trial after this epoch."""
    return oracle.is_pruned(trial.trial_id, epoch, value)


def valley(hp):
    hp.Float("x", 0.0, 1.0)
    hp.Float("rate", 1e-4, 1.0, sampling="log")


def depth(values):
    """Zero at x = 0.3, rate = 0.01."""
    return (values["x"] - 0.3) ** 2 + (math.log10(values["rate"]) + 2) ** 2 / 16


# ---------------------------------------------------------------------- what is proposed


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_sampler_does_better_than_chance(direction, tmp_path, rng):
    sign = 1 if direction == "min" else -1
    found = []
    for seed in range(3):
        oracle = make(tmp_path / str(seed), valley, direction, seed=seed)
        drawn = drive(oracle, lambda values: sign * depth(values), 40)
        found.append(min(map(depth, drawn)))
        assert depth(oracle.get_best_trials()[0].hyperparameters.values) == found[-1]
        assert oracle.study.best_value == sign * found[-1]
    points = rng.uniform(size=(1000, 40, 2))
    by_chance = ((points[..., 0] - 0.3) ** 2 + (points[..., 1] * 4 - 2) ** 2 / 16).min(axis=1)
    assert np.median(found) < np.quantile(by_chance, 0.3)
    # Half of the late proposals are where a tenth of all points are by chance.
    assert np.median([depth(values) for values in drawn[20:]]) < 0.1


def declare_everything(hp):
    hp.Fixed("fixed", 7)
    hp.Choice("cell", ["gru", "lstm", "simple"])
    with hp.conditional_scope("cell", ["gru", "lstm"]):
        hp.Choice("gate", ["sigmoid", "hard_sigmoid"])
        hp.Boolean("clipped")
        with hp.conditional_scope("clipped", [True]):
            hp.Choice("norm", [0.1, 0.3, 1.0])
    with hp.conditional_scope("cell", ["simple"]):
        hp.Boolean("identity")
    hp.Int("units", 3, 14, step=4)
    hp.Int("batch", 2, 40, step=2, sampling="log")
    hp.Int("width", 1, 1000, sampling="log")
    hp.Float("dropout", 0.0, 0.5, step=0.1)
    hp.Float("rate", 1e-4, 1e-1, step=10, sampling="log")
    hp.Float("decay", 0.1, 0.99, sampling="reverse_log")
    hp.Float("momentum", 0.0, 0.9)


def test_conditions_and_ranges_hold(tmp_path):
    def score_of(values):
        return None if values["momentum"] < 0.2 else values["decay"] + (values["cell"] == "gru")

    by_chance = optuna.samplers.RandomSampler(seed=0)
    ours = make(tmp_path / "a", declare_everything, seed=0)
    other = make(tmp_path / "b", declare_everything, sampler=by_chance)
    drawn = drive(ours, score_of, 40) + drive(other, score_of, 60)
    always = {"fixed", "cell", "units", "batch", "width"}
    always |= {"dropout", "rate", "decay", "momentum"}
    seen = collections.defaultdict(set)
    for values in drawn:
        simple = values["cell"] == "simple"
        expected = always | ({"identity"} if simple else {"gate", "clipped"})
        if values.get("clipped"):
            expected = expected | {"norm"}
        assert set(values) == expected
        for name, value in values.items():
            seen[name].add(value)
    assert seen["cell"] == {"gru", "lstm", "simple"}
    assert seen["gate"] == {"sigmoid", "hard_sigmoid"}
    assert seen["norm"] == {0.1, 0.3, 1.0}
    assert seen["fixed"] == {7}
    assert seen["units"] == {3, 7, 11}
    assert seen["batch"] == {2, 4, 8, 16, 32}
    assert {type(value) for value in seen["batch"] | seen["units"] | seen["width"]} == {int}
    assert all(min(abs(np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5]) - v)) < 1e-9 for v in seen["dropout"])
    assert sorted(seen["rate"]) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    for name, low, high in (("width", 1, 1000), ("decay", 0.1, 0.99), ("momentum", 0, 0.9)):
        assert low <= min(seen[name]) < max(seen[name]) <= high
    # The studies hold the same, on Optuna's scales.
    finished = [
        trial
        for oracle in (ours, other)
        for trial in oracle.study.get_trials(states=(COMPLETE, PRUNED))
    ]
    for trial, values in zip(finished, drawn, strict=True):
        assert trial.params["momentum"] == values["momentum"]
        for hp in ours.hyperparameters.space:
            if hp.name in ("decay", "batch", "dropout", "rate"):
                assert values[hp.name] == hp.prob_to_value(trial.params[hp.name])
        assert trial.params.get("gate") == values.get("gate")


def test_one_name_under_two_conditions(tmp_path):
    """Two parameters, which KerasTuner's trials later mix up; what is proposed is right."""

    def twice(hp):
        hp.Choice("cell", ["gru", "simple"])
        with hp.conditional_scope("cell", ["gru"]):
            hp.Choice("gate", ["sigmoid", "hard_sigmoid"])
        with hp.conditional_scope("cell", ["simple"]):
            hp.Choice("gate", ["none"])

    oracle = make(tmp_path, twice, seed=0)
    oracle.start_order.append("the defaults")
    drawn = [oracle.populate_space(str(k))["values"] for k in range(20)]
    pairs = {("gru", "sigmoid"), ("gru", "hard_sigmoid"), ("simple", "none")}
    assert {(values["cell"], values["gate"]) for values in drawn} == pairs
    assert {name for trial in oracle.study.trials for name in trial.params} == {
        "cell",
        "gate",
        "gate (cell in ['simple'])",
    }


def test_the_same_seed_proposes_the_same(tmp_path):
    def drawn(name, **options):
        return drive(make(tmp_path / name, valley, **options), depth, 15)

    first = drawn("a", seed=0)
    assert drawn("b", seed=0) == first
    other = drawn("c", seed=1)
    assert other[0] == first[0] == {"x": 0.0, "rate": 1e-4}  # the defaults
    assert not {values["x"] for values in other[1:]} & {values["x"] for values in first}
    assert drawn("d") != first


def test_nothing_is_tried_twice_and_the_search_ends(tmp_path):
    def small(hp):
        hp.Choice("a", [1, 2, 3])
        hp.Boolean("b")

    drawn = drive(make(tmp_path, small, seed=0), lambda values: values["a"], 100)
    assert len(drawn) == 6
    assert len({(values["a"], values["b"]) for values in drawn}) == 6


def test_it_keeps_away_from_failures(tmp_path):
    """Half of the space fails: of the last 20 that are proposed, hardly any are there."""

    def half(hp):
        hp.Choice("gate", ["good", "bad"])
        hp.Float("x", 0.0, 1.0)

    def score_of(values):
        return None if values["gate"] == "bad" else (values["x"] - 0.3) ** 2

    bad = []
    for seed in range(5):
        drawn = drive(make(tmp_path / str(seed), half, seed=seed), score_of, 40)
        gates = [values["gate"] for values in drawn]
        assert "bad" in gates[:10]
        bad.append(gates[20:].count("bad"))
    assert np.median(bad) <= 5


def test_a_sampler_and_a_pruner_of_ones_own(tmp_path):
    sampler = optuna.samplers.GridSampler({"x": [0.25, 0.5, 0.75]})

    def one(hp):
        hp.Float("x", 0.0, 1.0)

    def again():
        return make(tmp_path, one, sampler=sampler, pruner=optuna.pruners.NopPruner())

    oracle = again()
    drawn = drive(oracle, lambda values: values["x"], 2)
    drawn += drive(again(), lambda values: values["x"], 100)  # until the grid is at its end
    assert sorted(values["x"] for values in drawn) == [0.25, 0.5, 0.75]
    assert drive(again(), lambda values: values["x"], 100) == []


# ---------------------------------------------------------------------- pruning


def test_what_does_worse_than_others_is_ended(tmp_path):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=2)
    oracle = make(tmp_path, valley, direction="max", pruner=pruner, seed=0)
    for score in (0.8, 0.9):
        trial = oracle.create_trial("tuner0")
        assert not any(report(oracle, trial, epoch, score) for epoch in (1, 2, 3))
        end(oracle, trial, score)
    trial = oracle.create_trial("tuner0")
    assert not report(oracle, trial, 1, 0.1)  # too early to tell
    assert report(oracle, trial, 2, 0.1)
    assert oracle.get_trial(trial.trial_id).status == "RUNNING"  # until the tuner says so
    end(oracle, trial, None)
    better = oracle.create_trial("tuner0")
    assert not any(report(oracle, better, epoch, 0.95) for epoch in (1, 2, 3))
    end(oracle, better, 0.95)
    assert [t.state for t in oracle.study.trials] == [COMPLETE, COMPLETE, PRUNED, COMPLETE]
    assert oracle.study.trials[2].intermediate_values == {1: 0.1, 2: 0.1}
    assert oracle.get_trial(trial.trial_id).score is None
    # What a worker says of a trial that has ended changes nothing.
    assert not report(oracle, trial, 3, 0.1)
    oracle.end_trial(trial)
    assert len(oracle.study.trials) == 4


def test_a_training_that_begins_again_says_what_it_has_said(tmp_path):
    oracle = make(tmp_path, valley, seed=0)
    trial = oracle.create_trial("tuner0")
    for epoch, value in ((1, 5.0), (2, 4.0), (1, 5.0)):
        report(oracle, trial, epoch, value)
    end(oracle, trial, 3.0)
    (told,) = oracle.study.trials
    assert told.state == COMPLETE
    assert told.intermediate_values == {1: 5.0, 2: 4.0}


def build(hp):
    """Learns with two of the rates, and does next to nothing with the others."""
    rate = hp.Choice("rate", [0.3, 0.25, 2e-4, 1e-4])
    layers = [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)  # at first 1.4
    return model


def pruning():
    pruner = optuna.pruners.ThresholdPruner(upper=1.0, n_warmup_steps=2)
    return tuning.OptunaOracle("val_loss", 8, pruner=pruner, seed=0)


EPOCHS = 4
DATA = {"validation_data": (X, Y), "batch_size": 8, "epochs": EPOCHS, "verbose": 0}


def assert_only_the_bad_were_pruned(folder, seeds):
    trials = records.read_search(folder).trials
    outcomes = collections.Counter(trial.outcome for trial in trials)
    assert outcomes == {"finished": 2, "pruned": 2}
    for trial in trials:
        if trial.outcome == "pruned":
            assert trial.values["rate"] < 1e-3
            (execution,) = trial.executions  # no other seed was trained
            assert execution.epoch == 2
            assert execution.score is None
            assert "no better than other trials after epoch" in trial.reason
        else:
            assert trial.values["rate"] > 0.2
            assert [e.epoch for e in trial.executions] == [EPOCHS] * seeds


def test_a_search_that_prunes(tmp_path):
    tuner = tuning.Tuner(
        pruning(), build, executions_per_trial=2, directory=tmp_path, project_name="s"
    )
    tuner.search(X, Y, **DATA)
    assert_only_the_bad_were_pruned(tmp_path / "s", seeds=2)
    told = [trial.state for trial in tuner.oracle.study.trials if trial.state != FAIL]
    assert sorted(told) == [COMPLETE, COMPLETE, PRUNED, PRUNED]
    best = tuner.oracle.get_best_trials(100)
    assert len(best) == 2
    assert best[0].score == pytest.approx(tuner.oracle.study.best_value)
    assert (
        tuner.get_best_hyperparameters()[0].values["rate"]
        == best[0].hyperparameters.values["rate"]
        > 0.2
    )
    assert "pruned" in str(tuning.search_report(tuner))

    # A pruned trial that was cut short before it was told trains no further seed.
    trial = next(t for t in tuner.oracle.trials.values() if t.status == "FAILED")
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="pruned: no better than"):
        tuner.run_trial(trial, X, Y, **DATA)
    assert_only_the_bad_were_pruned(tmp_path / "s", seeds=2)

    with pytest.raises(
        ValueError, match="its `oracle` is 'OptunaOracle', not 'RandomSearchOracle'"
    ):
        tuning.Tuner(
            tuning.RandomSearchOracle("val_loss", max_trials=8, seed=0),
            build,
            executions_per_trial=2,
            directory=tmp_path,
            project_name="s",
        )


def test_what_one_worker_tried_another_knows(tmp_path, monkeypatch):
    def tuner(number):
        for name, value in roles.environment(number, 2).items():
            monkeypatch.setenv(name, value)
        return tuning.Tuner(pruning(), build, directory=tmp_path, project_name="s")

    first = tuner(0)
    with pytest.raises(SystemExit):
        tuner(1).search(X, Y, **DATA)
    assert_only_the_bad_were_pruned(tmp_path / "s", seeds=1)
    assert not first.oracle.study.trials
    assert first.oracle.create_trial("worker-0").status == "STOPPED"
    told = [trial for trial in first.oracle.study.trials if trial.state != FAIL]
    assert sorted(trial.state for trial in told) == [COMPLETE, COMPLETE, PRUNED, PRUNED]
    assert {len(trial.intermediate_values) for trial in told} == {2, EPOCHS}


# ---------------------------------------------------------------------- going on


def stored(folder):
    return {"storage": f"sqlite:///{folder}/study.db", "study_name": "valley"}


def study_of(folder):
    return optuna.load_study(study_name="valley", storage=stored(folder)["storage"])


@pytest.mark.parametrize("where", ["memory", "database"])
def test_a_search_goes_on_wherever_it_was_cut_off(where, tmp_path):
    def again():
        options = stored(tmp_path) if where == "database" else {}
        return make(tmp_path / "cut", valley, seed=0, **options)

    def score_of(values):
        return None if values["x"] > 0.8 else depth(values)

    whole = drive(make(tmp_path / "whole", valley, seed=0), score_of, 14)

    oracle = again()
    drawn = drive(oracle, score_of, 11)
    trial = oracle.create_trial("tuner0")
    report(oracle, trial, 1, 5.0)
    report(oracle, trial, 2, 4.0)
    # Cut off while a trial runs. It comes again.
    oracle = again()
    trial = oracle.create_trial("tuner0")
    assert trial.trial_id == "011"
    drawn.append(dict(trial.hyperparameters.values))
    report(oracle, trial, 1, 5.0)
    # Cut off after the end of the trial was saved, and before Optuna was told.
    oracle._bring_up_to_date = lambda trial_id: None
    end(oracle, trial, score_of(drawn[-1]))
    # Cut off after Optuna was asked, and before the answer was saved.
    oracle = again()
    oracle.populate_space("012")
    oracle = again()
    drawn += drive(oracle, score_of, 2)

    assert drawn == whole
    for study in (oracle.study, study_of(tmp_path) if where == "database" else None):
        if study is None:
            continue
        kept = [trial for trial in study.trials if trial.state in (COMPLETE, PRUNED)]
        assert [trial.params for trial in kept] == whole
        scores = [trial.value for trial in kept if trial.state == COMPLETE]
        assert scores == [depth(v) for v in whole if v["x"] <= 0.8]
        assert kept[11].intermediate_values == {1: 5.0, 2: 4.0}
        assert not study.get_trials(states=(RUNNING,))


def test_a_study_in_a_database_teaches_the_next_search(tmp_path, rng):
    study = optuna.create_study(**stored(tmp_path))
    distributions = {
        "x": optuna.distributions.FloatDistribution(0, 1),
        "rate": optuna.distributions.FloatDistribution(1e-4, 1, log=True),
    }
    for _ in range(20):
        params = {"x": rng.uniform(), "rate": 10 ** rng.uniform(-4, 0)}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, value=depth(params)
            )
        )
    oracle = make(tmp_path / "b", valley, seed=0, **stored(tmp_path))
    drawn = drive(oracle, depth, 8)
    assert np.median([depth(values) for values in drawn]) < 0.1  # 0.2 by chance
    assert len(study_of(tmp_path).trials) == 28
    assert len(oracle.trials) == 8

    with pytest.raises(
        ValueError, match="study 'valley' is there to minimize, and this search is "
    ):
        make(tmp_path / "c", valley, direction="max", **stored(tmp_path))

    def other(hp):
        hp.Choice("x", ["a", "b"])

    oracle = make(tmp_path / "d", other, **stored(tmp_path))
    with pytest.raises(
        ValueError, match="`?'x' cannot be drawn in the study 'valley'.*`study_name"
    ):
        oracle.populate_space("0")


# ---------------------------------------------------------------------- errors


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="`sampler` must be one of optuna.samplers.*'tpe'"):
        tuning.OptunaOracle("loss", sampler="tpe")
    with pytest.raises(ValueError, match="`pruner` must be one of optuna.pruners.*pruner=True"):
        tuning.OptunaOracle("loss", pruner=True)
    with pytest.raises(ValueError, match="`storage` and `study_name` must be given together.*'s'"):
        tuning.OptunaOracle("loss", study_name="s")
    with pytest.raises(ValueError, match="must be given together.*storage='sqlite"):
        tuning.OptunaOracle("loss", storage="sqlite:///never.db")
    assert not os.path.exists("never.db")
    for storage in (3, "nowhere://x", "sqlite:////nowhere/x.db"):
        with pytest.raises(ValueError, match=f"`storage` must be the URL.*storage={storage!r}"):
            tuning.OptunaOracle("loss", storage=storage, study_name="s")
    with pytest.raises(ValueError, match="`study_name` must be a text. Received: study_name=3"):
        tuning.OptunaOracle("loss", storage="sqlite:///never.db", study_name=3)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "keras_gates\[optuna\]"'):
        tuning.OptunaOracle("loss")
