"""Real searches, small, in which trials fail in every way there is."""

import collections
import json
import math
import pathlib

import keras
import keras_tuner
import numpy as np
import pytest
from helpers import ALL, BACKEND, leave_out_for_time, run_python
from keras import ops

from keras_gates import tuning
from keras_gates.tuning import oracles, records

STEPS, EPOCHS = 3, 3
X = np.linspace(-1, 1, 8 * STEPS, dtype="float32").reshape(-1, 1)
Y = 2 * X
PLANTS = ("sound", "nan", "inf", "raises", "late")


class Plant(keras.layers.Layer):
    """Adds `value` to its input from batch `at` of training on, counted from 0."""

    def __init__(self, value, at):
        super().__init__()
        self.value, self.at = value, at

    def build(self, shape):
        self.seen = self.add_weight(shape=(), dtype="int32", trainable=False)

    def call(self, x, training=False):
        if not training:
            return x
        planted = ops.where(self.seen >= self.at, self.value, 0.0)
        self.seen.assign(self.seen + 1)
        return x + planted


def build(hp):
    plant = hp.Choice("plant", PLANTS)
    rate = hp.Choice("rate", [0.05, 0.2])
    if plant == "raises":
        raise RuntimeError("no such luck")
    value = {"nan": math.nan, "inf": math.inf, "late": math.nan}.get(plant, 0.0)
    layers = [keras.Input((1,)), keras.layers.Dense(1), Plant(value, at=STEPS * (EPOCHS - 1))]
    if plant in ("nan", "inf"):
        layers[-1].at = 1
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)  # quicker than tracing
    return model


def searched(make, folder, model=build, executions=1, epochs=EPOCHS, **kwargs):
    tuner = make(
        model, executions_per_trial=executions, directory=folder, project_name="search", **kwargs
    )
    data = {"validation_data": (X, Y), "batch_size": 8, "epochs": epochs}
    tuner.search(X, Y, verbose=0, **data)
    return tuner


TUNERS = {
    "random": (tuning.RandomSearch, {"max_trials": 8}),
    "grid": (tuning.GridSearch, {}),
    "bayesian": (tuning.BayesianOptimization, {"max_trials": 9, "num_initial_points": 5}),
    "hyperband": (tuning.Hyperband, {"max_epochs": EPOCHS, "factor": 2}),
}


@pytest.mark.parametrize("name", TUNERS)
def test_failing_trials_are_kept_on_record_and_never_best(name, tmp_path):
    leave_out_for_time(name != "hyperband")
    make, options = TUNERS[name]
    tuner = searched(make, tmp_path, objective="val_loss", seed=0, **options)
    search = records.read_search(tuner.project_dir)
    wanted = {"sound": "finished", "raises": "raised"}
    failed = 0
    for trial in search.trials:
        plant = trial.values["plant"]
        (execution,) = trial.executions
        begun = trial.values.get("tuner/epochs", EPOCHS)
        expected = wanted.get(plant, "diverged")
        if plant == "late" and begun < EPOCHS:
            expected = "finished"  # Hyperband had not come so far
        if execution.outcome == "raised" and "goes on from" in execution.reason:
            continue
        assert execution.outcome == trial.outcome == expected, (plant, trial)
        failed += expected != "finished"
        if plant in ("nan", "inf"):
            # 1 - 1 / 1 of a running mean over an infinite and finite losses is not a number.
            assert execution.reason in (
                f"loss became {plant} in epoch 1, batch 2",
                "loss became nan in epoch 1, batch 2",
            )
            assert trial.score is None
        if expected == "diverged" and plant == "late":
            assert execution.epoch == EPOCHS
            luckier = execution.history["val_loss"][:-1]
            assert len(luckier) == EPOCHS - 1 - trial.values.get("tuner/initial_epoch", 0)
            assert np.isfinite(luckier).all()
        if plant == "raises":
            assert "no such luck" in execution.reason
    assert failed >= 3
    best = tuner.oracle.get_best_trials(100)
    finished = [t for t in search.trials if t.outcome == "finished"]
    assert {t.trial_id for t in best} == {t.trial_id for t in finished}
    assert best[0].score == min(t.score for t in finished)
    (model,) = tuner.get_best_models()
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(best[0].score, rel=1e-5)


def test_every_trial_fails_and_the_search_says_so(tmp_path):
    def failing(hp):
        hp.Int("width", 1, 100)
        model = keras.Sequential([keras.Input((1,)), Plant(math.inf, at=0), keras.layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    with pytest.warns(UserWarning, match="^No trial has finished: 6 diverged. .* NaN in the data"):
        tuner = searched(
            tuning.RandomSearch, tmp_path, failing, objective="val_loss", max_trials=6, seed=0
        )
    assert len(tuner.oracle.trials) == 6
    assert tuner.oracle.get_best_trials() == []
    with pytest.raises(ValueError, match="No trial has finished.*Trials: 6 diverged"):
        tuner.get_best_models()
    with pytest.raises(ValueError, match="No trial has finished"):
        tuner.get_best_hyperparameters()


def test_what_diverges_in_the_last_update_fails(tmp_path):
    """Every loss that is seen is finite; the weights are not."""

    class Last(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            last = ops.cast(self.iterations, "int32") == STEPS * EPOCHS - 1
            gradient = gradient + ops.where(last, np.float32(math.inf), np.float32(0))
            super().update_step(gradient, variable, learning_rate)

    def failing(hp):
        hp.Boolean("any")
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="out")])
        model.compile(Last(0.1), "mse")
        return model

    tuner = tuning.RandomSearch(failing, "loss", 1, directory=tmp_path, seed=0)
    tuner.search(X, Y, batch_size=8, epochs=EPOCHS, verbose=0)
    (trial,) = records.read_search(tuner.project_dir).trials
    assert trial.outcome == "diverged"
    assert f"was not finite after epoch {EPOCHS}" in trial.reason
    assert np.isfinite(trial.executions[0].history["loss"]).all()


def test_seeds_give_mean_and_spread_and_the_same_again(tmp_path):
    def run(folder):
        tuner = searched(
            tuning.RandomSearch,
            folder,
            build_dense,
            executions=2,
            objective="val_loss",
            max_trials=2,
            seed=0,
        )
        return tuner, records.read_search(tuner.project_dir).trials

    tuner, trials = run(tmp_path / "a")
    for trial in trials:
        assert [e.seed for e in trial.executions] == [0, 1]
        scores = [min(e.history["val_loss"]) for e in trial.executions]
        assert len(set(scores)) == 2
        assert trial.scores == scores
        assert trial.score == pytest.approx(np.mean(scores))
        assert trial.spread == pytest.approx(np.std(scores, ddof=1))
        assert tuner.oracle.trials[trial.trial_id].score == pytest.approx(np.mean(scores))
        assert all(len(e.history["loss"]) == EPOCHS for e in trial.executions)
        assert {e.parameters for e in trial.executions} == {2}
    _, again = run(tmp_path / "b")
    assert [t.values for t in again] == [t.values for t in trials]
    assert [t.scores for t in again] == [t.scores for t in trials]


def build_dense(hp):
    rate = hp.Float("rate", 0.01, 0.2)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)  # quicker than tracing
    return model


def test_share_of_seeds_that_diverge(tmp_path):
    """A trial of which one seed diverges has no score."""

    class Some(keras_tuner.HyperModel):
        def build(self, hp):
            return build_dense(hp)

        fitted = 0

        def fit(self, hp, model, *args, **kwargs):
            self.fitted += 1
            if self.fitted == 2:
                model.layers[0].kernel.assign([[math.nan]])
            return model.fit(*args, **kwargs)

    tuner = searched(
        tuning.RandomSearch, tmp_path, Some(), executions=3, objective="val_loss", max_trials=1
    )
    (trial,) = records.read_search(tuner.project_dir).trials
    assert [e.outcome for e in trial.executions] == ["finished", "diverged", "finished"]
    assert trial.diverged == pytest.approx(1 / 3)
    assert trial.outcome == "diverged"
    assert trial.score is None
    assert len(trial.scores) == 2


def draws(oracle, count=6):
    oracle.hyperparameters.Float("rate", 0.0, 1.0)
    oracle.start_order.append("the default")
    return [oracle.populate_space(str(k))["values"]["rate"] for k in range(count)]


def test_zero_is_a_seed():
    make = tuning.oracles.RandomSearchOracle
    assert draws(make("loss", seed=0)) == draws(make("loss", seed=0))
    assert draws(make("loss", seed=0)) != draws(make("loss", seed=1))
    assert draws(make("loss")) != draws(make("loss"))


def test_bayesian_choices_are_unordered():
    oracle = oracles.BayesianOptimizationOracle("loss", seed=0)
    hp = oracle.hyperparameters
    hp.Choice("gate", ["a", "b", "c", "d"])
    hp.Choice("bound", [1.0, 2.0, 4.0])
    values = [{"gate": gate, "bound": 1.0} for gate in "abcd"]
    vectors = [[h.value_to_prob(v[h.name]) for h in hp.space] for v in values]
    seen = oracle._with_one_input_per_value(np.array(vectors))
    assert seen.shape == (4, 5)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    np.testing.assert_allclose(distances, math.sqrt(2) * (1 - np.eye(4)))


def ended(oracle, values, score):
    """Puts a trial through an oracle as a tuner does."""
    trial = keras_tuner.engine.trial.Trial(oracle.get_space(), str(len(oracle.trials)))
    trial.hyperparameters.values = values
    oracle.trials[trial.trial_id] = trial
    oracle.start_order.append(trial.trial_id)
    if score is not None:
        oracle.update_trial(trial.trial_id, {"loss": score})
    trial.status = "FAILED" if score is None else "COMPLETED"
    oracle.end_trial(trial)
    return trial


def test_bayesian_keeps_away_from_failures(tmp_path):
    """Half of the space fails: of what is proposed then, hardly anything is there."""
    oracle = oracles.BayesianOptimizationOracle("loss", max_trials=60, seed=0)
    oracle._set_project_dir(tmp_path, "search")
    oracle._display.verbose = 0
    oracle.hyperparameters.Choice("gate", ["good", "bad"])
    oracle.hyperparameters.Float("rate", 0.0, 1.0)
    proposed = []
    for count in range(14):
        values = oracle.populate_space(str(count))["values"]
        proposed.append(values["gate"])
        ended(oracle, values, None if values["gate"] == "bad" else (values["rate"] - 0.3) ** 2)
    assert "bad" in proposed[:6]
    assert collections.Counter(proposed[6:])["bad"] <= 2


def test_infinite_scores_are_failures(tmp_path):
    for score in (math.inf, -math.inf, math.nan):
        oracle = oracles.RandomSearchOracle("loss", max_trials=5)
        oracle._set_project_dir(tmp_path, str(score))
        oracle._display.verbose = 0
        oracle.hyperparameters.Float("rate", 0.0, 1.0)
        ended(oracle, {"rate": 0.5}, 1.0)
        assert ended(oracle, {"rate": 0.1}, score).status == "FAILED"
        assert [t.score for t in oracle.get_best_trials(5)] == [1.0]


def test_hyperband_goes_on_with_the_best_though_most_failed(tmp_path):
    """Of nine, five fail: three of the other four go on."""
    oracle = oracles.HyperbandOracle("loss", max_epochs=9, factor=3, seed=0)
    oracle._set_project_dir(tmp_path, "search")
    oracle._display.verbose = 0
    oracle.hyperparameters.Float("rate", 0.0, 1.0)
    size = oracle._get_size(2, 0)
    promoted = oracle._get_size(2, 1)
    kept = []
    for count in range(size):
        trial = oracle.create_trial("tuner0")
        score = None if count < size - promoted - 1 else float(count)
        if score is not None:
            oracle.update_trial(trial.trial_id, {"loss": score})
            kept.append(trial.trial_id)
        trial.status = "FAILED" if score is None else "COMPLETED"
        oracle.end_trial(trial)
    chosen = []
    for _ in range(promoted):
        trial = oracle.create_trial("tuner0")
        chosen.append(trial.hyperparameters.values["tuner/trial_id"])
        oracle.update_trial(trial.trial_id, {"loss": 1.0})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert chosen == kept[:promoted]


def test_grid_takes_every_combination_once(tmp_path):
    def build_grid(hp):
        cell = hp.Choice("cell", ["gru", "simple"])
        if cell == "gru":
            with hp.conditional_scope("cell", ["gru"]):
                hp.Choice("gate", ["a", "b", "c"])
        with hp.conditional_scope("cell", ["simple"]):
            hp.Boolean("identity")
        hp.Choice("bound", [1.0, 2.0])
        return build_dense_fixed()

    tuner = searched(tuning.GridSearch, tmp_path, build_grid, objective="val_loss", epochs=1)
    taken = [tuple(sorted(t.values.items())) for t in records.read_search(tuner.project_dir).trials]
    expected = [
        {"cell": "gru", "gate": gate, "bound": bound} for gate in "abc" for bound in (1.0, 2.0)
    ] + [
        {"cell": "simple", "identity": flag, "bound": bound}
        for flag in (False, True)
        for bound in (1.0, 2.0)
    ]
    assert sorted(map(str, taken)) == sorted(str(tuple(sorted(e.items()))) for e in expected)
    assert dict(taken[0]) == {"cell": "gru", "gate": "a", "bound": 1.0}


def build_dense_fixed():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def test_another_search_in_the_folder_is_refused(tmp_path):
    options = {"objective": "val_loss", "max_trials": 2, "seed": 0, "epochs": 1}
    searched(tuning.RandomSearch, tmp_path, **options)

    def other(hp):
        hp.Choice("plant", PLANTS[:2])
        return build_dense_fixed()

    before = {p: p.read_bytes() for p in pathlib.Path(tmp_path).rglob("*.json")}
    for changed, message in [
        ({"model": other}, r"its hyperparameter 'plant' is .*'late'.*, not .*'nan'\]"),
        ({"objective": "loss"}, "its `objective` is 'val_loss', not 'loss'"),
        ({"executions": 2}, r"its `seed` and `executions_per_trial` .* is \[0\], not \[0, 1\]"),
        ({"make": tuning.GridSearch}, "its `tuner` is 'RandomSearch', not 'GridSearch'"),
    ]:
        arguments = {"make": tuning.RandomSearch, "folder": tmp_path, **options, **changed}
        with pytest.raises(ValueError, match=message):
            searched(**arguments)
    assert before == {p: p.read_bytes() for p in pathlib.Path(tmp_path).rglob("*.json")}


def test_a_search_of_plain_kerastuner_is_refused(tmp_path):
    plain = keras_tuner.RandomSearch(
        build_dense, "val_loss", max_trials=1, directory=tmp_path, project_name="search"
    )
    plain.search(X, Y, validation_data=(X, Y), epochs=1, verbose=0)
    with pytest.raises(ValueError, match="another search, by a tuner that is not of keras_gates"):
        searched(tuning.RandomSearch, tmp_path, build_dense, objective="val_loss", max_trials=1)


def test_what_cannot_go_on_is_refused(tmp_path):
    (tmp_path / "search" / "trial_0").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds 1 trials, and nothing that tells how"):
        searched(tuning.RandomSearch, tmp_path, build_dense, objective="val_loss", max_trials=1)


def test_resuming_says_so_and_adds_trials(tmp_path, capsys):
    options = {"objective": "val_loss", "seed": 0, "epochs": 1, "model": build_dense}
    searched(tuning.RandomSearch, tmp_path, max_trials=2, **options)
    first = records.read_search(tmp_path / "search").trials
    assert "goes on" not in capsys.readouterr().out
    searched(tuning.RandomSearch, tmp_path, max_trials=4, **options)
    assert "goes on: 2 trials had ended, 0 had not" in capsys.readouterr().out
    trials = records.read_search(tmp_path / "search").trials
    assert len(trials) == 4
    assert {t.score for t in first} < {t.score for t in trials}
    whole = searched(tuning.RandomSearch, tmp_path / "whole", max_trials=4, **options)
    in_one = records.read_search(whole.project_dir).trials
    assert {t.score for t in in_one} == {t.score for t in trials}


def test_progress_is_a_line(tmp_path, capsys):
    make, options = TUNERS["grid"]
    tuner = make(build, objective="val_loss", directory=tmp_path, **options)
    tuner.search(X, Y, validation_data=(X, Y), batch_size=8, epochs=EPOCHS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 + 8
    assert lines[0].startswith("1 of 10 trials done; best val_loss ")
    assert "trial 0002 diverged: loss became nan in epoch 1, batch 2 (seed 0)" in lines
    assert "10 of 10 trials done, 6 diverged, 2 raised; best val_loss " in lines[-1]


KILLS = """
    import json, os, pathlib, shutil, signal, sys, tempfile
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    from keras_gates import tuning
    from keras_gates.tuning import records

    assert "optuna" not in sys.modules  # which only those who want it have

    class Arithmetic({tuner}):
        \"\"\"Trials that train nothing, so that processes can be forked.\"\"\"

        def _build_and_fit_model(self, trial, *args, **kwargs):
            with open(os.path.join(self.directory, "runs"), "a") as runs:
                runs.write(trial.trial_id + "\\n")
            a, b = (trial.hyperparameters.get(name) for name in "ab")
            if a == 1:
                return float("nan")
            loss = float(10 * a + b)
            watch = kwargs["callbacks"][-1]
            if watch.report(1, {{"loss": loss}}):
                watch.record.outcome, watch.record.reason = records.PRUNED, "no better"
            return loss

    def build(hp):
        hp.Choice("a", [0, 1, 2])
        hp.Choice("b", [0, 1])

    def search(folder):
        tuner = Arithmetic({arguments}, directory=folder, project_name="p",
                           executions_per_trial=2)
        tuner.search(verbose=0)

    def in_a_child(function):
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            function()
            os._exit(0)
        return os.waitpid(child, 0)[1]

    def found(folder):
        search = records.read_search(folder / "p")
        return sorted((t.values["a"], t.values["b"], t.outcome, t.score, len(t.executions))
                      for t in search.trials)

    root = pathlib.Path(tempfile.mkdtemp())
    assert in_a_child(lambda: search(root / "whole")) == 0
    whole = found(root / "whole")
    write, replace = records.write_json, os.replace

    def killed_at(stage, folder):
        count = [0]

        def kill(*args):
            count[0] += 1
            if count[0] == stage:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(*args):
            kill()  # before the file is written
            write(*args)

        def moved(*args):
            kill()  # written aside, not yet in place
            replace(*args)

        records.write_json, records.os.replace = counted, moved
        search(folder)

    stage = stages = lost = 0
    while True:
        stage, stages = stage + {every}, stages + 1
        folder = root / str(stage)
        status = in_a_child(lambda: killed_at(stage, folder))
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        finished = set()
        for path in (folder / "p").glob("trial_*/trial.json"):
            if json.loads(path.read_text())["status"] in ("COMPLETED", "FAILED"):
                finished.add(json.loads(path.read_text())["trial_id"])
        before = (folder / "runs").read_text().split() if (folder / "runs").exists() else []
        assert in_a_child(lambda: search(folder)) == 0
        assert found(folder) == whole, (stage, found(folder), whole)
        after = (folder / "runs").read_text().split()[len(before):]
        lost += bool(finished & set(after))
    print(json.dumps({{"stages": stages - 1, "lost": lost, "trials": len(whole),
                      "pruned": sum("pruned" in trial for trial in whole)}}))
    shutil.rmtree(root)
"""


PRUNER = "__import__('optuna').pruners.ThresholdPruner(upper=20.5)"


@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough")
@pytest.mark.parametrize(
    ("tuner", "arguments", "every"),
    [
        ("RandomSearch", "build, 'loss', 3, seed=0", 1 if ALL else 3),
        ("GridSearch", "build, 'loss', seed=0", 7),
        ("BayesianOptimization", "build, 'loss', 4, num_initial_points=2, seed=0", 5),
        ("Hyperband", "build, 'loss', 3, factor=3, seed=0", 5),
        ("Tuner", f"tuning.OptunaOracle('loss', 6, pruner={PRUNER}, seed=0), build", 5),
    ],
)
def test_killed_at_any_write_and_resumed_nothing_is_lost(tuner, arguments, every):
    leave_out_for_time(tuner != "RandomSearch")
    printed = run_python(KILLS.format(tuner=f"tuning.{tuner}", arguments=arguments, every=every))
    found = json.loads(printed.splitlines()[-1])
    assert found["lost"] == 0
    assert found["trials"] >= 3
    assert found["stages"] > 10
    if PRUNER in arguments:
        assert found["pruned"] == 1
