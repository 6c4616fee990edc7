"""Trials that are trained again with further seeds: does the difference hold?"""

import doctest
import io
import json
import math
import os
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from helpers import BACKEND, leave_out_for_time
from scipy import stats

from keras_gates import tuning
from keras_gates.tuning import records
from keras_gates.tuning.records import Execution, Search, Trial
from keras_gates.tuning.report import confirmation as module
from keras_gates.tuning.report import search_report
from keras_gates.tuning.report.confirmation import chosen, confirmation

X = np.linspace(-1, 1, 24, dtype="float32").reshape(-1, 1)
Y = 2 * X
DATA = {"validation_data": (X, Y), "batch_size": 8, "epochs": 2}


# ---------------------------------------------------------------------- the report


def compared(scores, direction="max", **arguments):
    """From the scores of each trial with seeds 3, 4, ...; None: it diverged."""
    executions = {
        name: [
            Execution(seed, "finished", 2, score=score)
            if score is not None
            else Execution(seed, "diverged", 2, "loss became nan in epoch 2")
            for seed, score in enumerate(its, start=3)
        ]
        for name, its in scores.items()
    }
    trials = [Trial(name, {"gate_activation": name}, "COMPLETED", []) for name in scores]
    seeds = list(range(3, 3 + max(map(len, scores.values()))))
    return confirmation(Search("val", direction, trials), executions, seeds)


def test_the_interval_is_that_of_a_paired_t_test(rng):
    one, other = rng.normal(size=7) + 3, rng.normal(size=7)
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    found = compared({"a": list(map(float, one)), "b": list(map(float, other))})
    (difference,) = found.differences
    assert difference.verdict == "holds"
    assert difference.difference == pytest.approx((one - other).mean())
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert "Trial a (a) is better than trial b (b) by" in str(found)
    assert "over 7 further seeds): the difference holds." in str(found)
    found = compared({"b": list(map(float, other)), "a": list(map(float, one))})
    assert found.differences[0].verdict == "reversed"
    assert "Trial a (a) is better than trial b (b) by" in str(found)
    assert "the other way round" in str(found)
    losses = compared({"b": list(map(float, other)), "a": list(map(float, one))}, "min")
    assert losses.differences[0].verdict == "holds"
    assert losses.differences[0].low == pytest.approx(interval.low)
    lines = str(found).splitlines()
    row = next(i for i, line in enumerate(lines) if line.split()[:1] == ["seed"])
    assert lines[row].split() == ["seed", "trial", "b", "trial", "a"]
    assert lines[row + 1].split() == ["3", f"{other[0]:.4g}", f"{one[0]:.4g}"]


def test_what_else_two_trials_differ_in_is_said():
    executions = {
        name: [Execution(seed, "finished", 2, score=score + seed / 100) for seed in range(3)]
        for name, score in (("a", 0.9), ("b", 0.7), ("c", 0.6))
    }
    choices = {"a": ("relu", 0.01), "b": ("tanh", 0.001), "c": ("relu", 0.001)}
    trials = [
        Trial(name, {"candidate_activation": candidate, "rate": rate}, "COMPLETED", [])
        for name, (candidate, rate) in choices.items()
    ]
    found = confirmation(Search("val", "max", trials), executions, [0, 1, 2])
    one, other = (each.sentence for each in found.differences)
    assert one.endswith(
        "the difference holds. The two differ in more than the pair, which need not be the cause: "
        "rate (0.01, not 0.001)."
    )
    assert other.endswith("the difference holds.")  # of one pair


def test_what_is_not_decided_says_how_many_seeds_it_takes():
    differences = [0.3, -0.2, 0.1, 0.2]
    (found,) = compared({"a": [1 + d for d in differences], "b": [1.0] * 4}).differences
    assert found.verdict == "undecided"
    assert found.low < 0 < found.high
    effect = np.mean(differences) / np.std(differences, ddof=1)
    n = found.seeds_needed
    power = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, effect * math.sqrt(n))
    assert power == pytest.approx(0.8, abs=0.02)
    call = f"tuner.confirm(trials=['a', 'b'], seeds={n})"
    assert f"takes about {n} seeds, these included: {call}." in found.sentence
    (found,) = compared({"a": [1.0, 1.1, 1.0], "b": [1.0, 1.0, 1.1]}).differences
    assert found.seeds_needed is None
    assert "No number of seeds" in found.sentence
    (found,) = compared({"a": [1.0, 1.0], "b": [1.0, 1.0]}).differences
    assert (found.verdict, found.difference) == ("undecided", 0)


def test_what_is_not_decided_is_asked_of_the_same_trials_again():
    scores = {"0": [1.0, 1.0], "1": [1.5, 1.4], "2": [1.2, 1.1]}
    trials = [
        Trial(
            name,
            {"gate_activation": gate, "candidate_activation": "tanh"},
            "COMPLETED",
            [
                Execution(seed, "finished", 2, score=score)
                for seed, score in enumerate(scores[name])
            ],
        )
        for name, gate in zip(scores, ("sigmoid", "hard_sigmoid", "relu_gate"), strict=True)
    ]
    search = Search("val", "max", trials)
    for names, said in ((["1", "0"], "confirm(seeds="), (["0", "2"], "trials=['0', '2'], seeds=")):
        executions = {
            name: [Execution(s, "finished", 2, score=v) for s, v in enumerate(its)]
            for name, its in zip(names, ([1.3, 0.9, 1.2], [1.0, 1.0, 1.0]), strict=True)
        }
        (found,) = confirmation(search, executions, [0, 1, 2]).differences
        assert said in found.sentence


def test_several_are_compared_with_the_first_and_corrected_for():
    scores = {"a": [2.0, 2.2, 2.1], "b": [1.0, 1.5, 1.1], "c": [2.0, 2.1, 2.2]}
    found = compared(scores)
    assert [(d.first, d.other, d.verdict) for d in found.differences] == [
        ("a", "b", "holds"), ("a", "c", "undecided"),
    ]  # fmt: skip
    values = np.array(scores["a"]) - scores["b"]
    margin = stats.t.ppf(1 - 0.025 / 2, 2) * values.std(ddof=1) / math.sqrt(3)
    assert found.differences[0].low == pytest.approx(values.mean() - margin)
    assert "corrected for 2 comparisons" in found.differences[0].sentence


def test_what_diverges_does_not_hold():
    found = compared({"a": [9.0, None, 9.0, 9.0], "b": [1.0, 1.0, 1.1, None]})
    assert found.differences[0].verdict == "failed"
    assert "Trial a (a) did not finish with seed 4, trial b (b) with seed 6: what it" in str(found)
    assert "trial a  seed 4: diverged, loss became nan in epoch 2" in str(found)
    other = compared({"a": [9.0, 9.0, 9.1], "b": [None, 1.0, 1.0]})
    assert other.differences[0].verdict == "holds"
    assert list(other.differences[0].differences) == [4, 5]
    assert "Trial b (b) did not finish with seed 3, which do not count." in str(other)
    few = compared({"a": [9.0, 9.0, 9.1], "b": [None, 1.0, None]})
    assert few.differences[0].verdict == "too few"
    assert "Trial b (b) did not finish with seeds 3, 5: too few are left" in str(few)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["reasons"][0][:2] == ["a", 4]


def test_of_trials_that_are_alike_5_of_100_differences_hold():
    rng = np.random.default_rng(3)
    verdicts = []
    for _ in range(800):
        of_seed = rng.normal(size=4)  # which both have
        one, other = (of_seed + 0.3 * rng.normal(size=4) for _ in range(2))
        found = compared({"a": list(map(float, one)), "b": list(map(float, other))})
        verdicts.append(found.differences[0].verdict)
    assert 0.03 < 1 - verdicts.count("undecided") / 800 < 0.07


def scored(name, gate, *scores):
    executions = [Execution(s, "finished", 2, score=score) for s, score in enumerate(scores)]
    values = {"gate_activation": gate, "candidate_activation": "tanh"}
    return Trial(name, values, "COMPLETED", executions)


def test_which_trials_are_confirmed():
    default, hard, relu = (
        scored("0", "sigmoid", 0.5, 0.6), scored("1", "hard_sigmoid", 0.7, 0.8),
        scored("2", "relu", 0.6, 0.7),
    )  # fmt: skip
    of = lambda *trials: Search("val", "max", list(trials))  # noqa: E731
    assert chosen(of(default, hard, relu), None) == ["1", "0"]
    assert chosen(Search("val", "min", [default, hard, relu]), None) == ["0", "2"]  # the next
    assert chosen(of(default, hard, relu), ["0", "2", "1"]) == ["0", "2", "1"]
    with pytest.raises(ValueError, match="no two to compare.*No trial has the default pair"):
        chosen(of(hard, relu), None)
    with pytest.raises(ValueError, match="no two to compare by default. No trial has finished"):
        chosen(of(), None)
    with pytest.raises(ValueError, match="no two to compare by default. Nothing was compared"):
        chosen(of(default), None)
    assert chosen(of(default, scored("4", "sigmoid", 0.6, 0.7)), None) == ["4", "0"]
    running = Trial("3", {}, "RUNNING", [])
    for wrong in (["0"], ["0", "0"], ["0", "7"], ["0", "3"], []):
        with pytest.raises(ValueError, match=r"`trials` must be a list of the ids.*: 0, 1\. Rec"):
            chosen(of(default, hard, running), wrong)
    with pytest.raises(TypeError, match="Received: trials='01'"):
        chosen(of(default, hard), "01")


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# ---------------------------------------------------------------------- the trainings


def build(hp):
    """The pair is a name alone; rates matter, and every seed begins elsewhere."""
    gate = hp.Choice("gate_activation", ["sigmoid", "hard_sigmoid", "tanh_gate"])
    rates = {"sigmoid": 0.05, "hard_sigmoid": 0.1, "tanh_gate": 0.02}
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rates[gate]), "mse", run_eagerly=True)
    return model


class Arithmetic(tuning.GridSearch):
    """Trials that train nothing."""

    def _build_and_fit_model(self, trial, *args, **kwargs):
        watch = kwargs["callbacks"][-1]
        watch.report(1, {})
        rates = {"sigmoid": 1.0, "hard_sigmoid": 0.5, "tanh_gate": 2.0}
        return rates[trial.hyperparameters.get("gate_activation")] + (0.1 * self._seed) % 0.3


def searched(folder, make=tuning.GridSearch, model=build, search=True, **options):
    options = {"executions_per_trial": 2, "seed": 0, **options}
    if make is not tuning.Hyperband:
        options = {"max_trials": 3, **options}
    tuner = make(model, "val_loss", directory=folder, project_name="search", **options)
    if search:
        tuner.search(X, Y, verbose=0, **DATA)
    return tuner


@pytest.mark.slow
def test_further_seeds_give_what_more_executions_would_have(tmp_path):
    tuner = searched(tmp_path / "one", executions_per_trial=1)
    before = {p: p.read_bytes() for p in (tmp_path / "one").rglob("executions.json")}
    model = tuner.get_best_models()[0].get_weights()
    found = tuner.confirm(trials=["1", "0"], seeds=2, verbose=0)
    whole = searched(tmp_path / "three", executions_per_trial=3, max_trials=2)
    expected = {
        trial.trial_id: {e.seed: e.score for e in trial.executions[1:]}
        for trial in records.read_search(whole.project_dir).trials
    }
    assert found.seeds == [1, 2]
    assert found.scores == {name: expected[name] for name in ("1", "0")}
    (difference,) = found.differences
    paired = [expected["0"][seed] - expected["1"][seed] for seed in (1, 2)]
    assert list(difference.differences.values()) == pytest.approx(paired)
    assert before == {p: p.read_bytes() for p in (tmp_path / "one").rglob("executions.json")}
    for one, other in zip(model, tuner.get_best_models()[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(tmp_path.glob("one/search/trial_0/seed_[12].weights.h5"))


@pytest.mark.slow
def test_what_was_trained_is_not_trained_again(tmp_path, capsys):
    tuner = searched(tmp_path)
    first = tuner.confirm(seeds=2)
    assert "4 of 4 trainings done; " in capsys.readouterr().out
    again = searched(tmp_path, search=False)
    with pytest.raises(ValueError, match="`confirm` must be given the data.*not called in this"):
        again.confirm(seeds=3)
    with pytest.raises(ValueError, match="were trained otherwise.*its `epochs` is 2, not 3"):
        again.confirm(X, Y, **{**DATA, "epochs": 3})
    capsys.readouterr()
    more = again.confirm(X, Y, seeds=3, **DATA)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "5 of 6 trainings done", "6 of 6 trainings done",
    ]  # fmt: skip
    assert more.seeds == [2, 3, 4]
    for name, scores in first.scores.items():
        assert scores == {seed: more.scores[name][seed] for seed in (2, 3)}
    fewer = again.confirm(X, Y, seeds=2, **DATA)
    assert capsys.readouterr().out == ""
    assert fewer.to_dict() == first.to_dict()
    third = again.confirm(X, Y, trials=["0", "2"], seeds=2, **DATA)
    assert capsys.readouterr().out.count("trainings done") == 2
    assert third.scores["0"] == first.scores["0"]


def test_bad_seeds(tmp_path):
    tuner = searched(tmp_path, Arithmetic)
    with pytest.raises(ValueError, match="`seeds` must be a positive integer.*seeds=0"):
        tuner.confirm(seeds=0)
    with pytest.raises(ValueError, match="`seeds` must be at least 2.*seeds=1"):
        tuner.confirm(seeds=1)


def test_a_report_has_what_was_confirmed_last(tmp_path):
    tuner = searched(tmp_path, Arithmetic)
    assert search_report(tuner).confirmation is None
    tuner.confirm(seeds=3, verbose=0)
    found = tuner.confirm(trials=["2", "0"], seeds=2, verbose=0)
    report = search_report(tuner.project_dir)
    assert report.confirmation == found
    assert list(found.scores) == ["2", "0"]
    assert found.differences[0].verdict == "reversed"
    report.to_html(tmp_path / "page.html")
    for text in (str(report), report._repr_html_(), (tmp_path / "page.html").read_text("utf-8")):
        assert "Trained with further seeds: " in text.replace("</p>", " ")
        assert found.differences[0].sentence in text
        assert "val_loss with every further seed" in text
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["confirmation"] == json.loads(json.dumps(found.to_dict()))
    records.write_json(tmp_path / "search" / records.CONFIRMATION, {"trials": ["7"], "seeds": [2]})
    assert search_report(tuner).confirmation is None


@pytest.mark.slow
def test_divergence_and_errors_do_not_end_it(tmp_path, capsys):
    fail = {"on": True}

    def failing(hp):
        model = build(hp)
        if fail["on"] and tuner is not None and tuner._seed == 3:
            if hp.get("gate_activation") == "sigmoid":
                raise RuntimeError("no such luck")
            model.layers[-1].kernel.assign([[math.inf]])
        return model

    tuner = None
    tuner = searched(tmp_path, model=failing)
    found = tuner.confirm(seeds=4)
    out = capsys.readouterr().out
    assert "trial 1 diverged: loss became" in out
    assert "trial 0 raised: RuntimeError: no such luck" in out
    assert "8 of 8 trainings done, 1 diverged, 1 raised; " in out
    assert [found.scores[name][3] for name in "10"] == [None, None]
    assert found.differences[0].verdict == "failed"
    assert "Trial 1 (hard_sigmoid) did not finish with seed 3, trial 0 (sigmoid)" in str(found)
    fail["on"] = False
    found = tuner.confirm(seeds=4)  # an error is tried again, a divergence is a result
    assert "8 of 8 trainings done, 1 diverged; " in capsys.readouterr().out
    assert found.scores["1"][3] is None
    assert found.scores["0"][3] is not None


def test_the_line_on_a_terminal(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    tuner = searched(tmp_path, Arithmetic)
    tuner._progress.stream = Terminal()
    tuner.confirm(seeds=2)
    lines = [line.strip() for line in re.split("[\\r\\n]", tuner._progress.stream.getvalue())]
    assert any(
        line.startswith("1 of 4 trainings done, trial 0 with seed 2 in epoch 1; ") for line in lines
    )
    assert lines[-2].startswith("4 of 4 trainings done; ")


def test_interrupted_says_how_to_go_on(tmp_path):
    tuner = searched(tmp_path, Arithmetic)
    tuner._execute = lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt) as error:
        tuner.confirm(seeds=2)
    (note,) = error.value.__notes__  # which Python shows below the traceback
    assert note == f"Interrupted. The same call goes on with what is in {tuner.project_dir}"


@pytest.mark.slow
def test_hyperband_confirms_with_whole_trainings(tmp_path):
    def rated(hp):
        hp.Float("rate", 0.0, 1.0)
        return build(hp)

    options = {"max_epochs": 2, "factor": 2, "executions_per_trial": 1}
    tuner = searched(tmp_path, tuning.Hyperband, rated, **options)
    search = records.read_search(tuner.project_dir)
    finished = [t for t in search.trials if t.outcome == "finished"]
    shorter = next(t for t in finished if t.values["tuner/epochs"] < 2)
    later = next(t for t in finished if t.values["tuner/initial_epoch"] > 0)
    found = tuner.confirm(trials=[shorter.trial_id, later.trial_id], seeds=2, verbose=0)
    for trial in (shorter, later):
        folder = tuner.get_trial_dir(trial.trial_id)
        executions = records.read_executions(folder, records.CONFIRMED)
        assert [len(e.history["val_loss"]) for e in executions] == [2, 2]
    alike = shorter.values["gate_activation"] == later.values["gate_activation"]
    assert (found.differences[0].difference == 0) == alike


def test_the_report_names_the_call_and_the_call_takes_it(tmp_path):
    tuner = searched(tmp_path, Arithmetic, executions_per_trial=1)
    sentence = search_report(tuner).comparison.sentence
    (call,) = re.findall(r"tuner\.confirm\(seeds=\d+\)", sentence)
    found = eval(call, {"tuner": tuner})
    assert len(found.seeds) == 5
    assert "paired by seed, over 5 further seeds" in str(found)


KILLED = """
    import os, signal, sys
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from keras_gates import tuning
    from keras_gates.tuning import records

    class Arithmetic(tuning.GridSearch):
        def _build_and_fit_model(self, trial, *args, **kwargs):
            gate = trial.hyperparameters.get("gate_activation")
            with open(os.path.join(self.directory, "runs"), "a") as runs:
                runs.write(f"{gate} {self._seed}\\n")
            return {"sigmoid": 1.0, "relu": 2.0, "tanh_gate": 0.0}[gate] + 0.1 * self._seed

    def build(hp):
        hp.Choice("gate_activation", ["sigmoid", "relu", "tanh_gate"])

    tuner = Arithmetic(build, "loss", max_trials=3, directory=sys.argv[1],
                       project_name="p", seed=0)
    tuner.search(1, verbose=0)
    write, count = records.write_json, [0]

    def killing(*args):
        count[0] += 1
        if count[0] == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)

    records.write_json = killing
    print(tuner.confirm(seeds=3, verbose=0).scores)
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough")
def test_killed_it_goes_on(tmp_path):
    leave_out_for_time(True)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(KILLED))
    run = lambda stage: subprocess.run(  # noqa: E731
        [sys.executable, str(script), str(tmp_path), stage], capture_output=True, text=True,
        env={**os.environ}, check=False,
    )  # fmt: skip
    killed = run("4")
    assert killed.returncode == -9, killed.stderr
    before = (tmp_path / "runs").read_text().splitlines()
    done = run("0")
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "runs").read_text().splitlines()[len(before) :]
    expected = {"2": {1: 0.1, 2: 0.2, 3: 0.3}, "0": {1: 1.1, 2: 1.2, 3: 1.3}}
    found = eval(done.stdout.splitlines()[-1])
    assert list(found) == list(expected)
    for name, scores in expected.items():
        assert found[name] == pytest.approx(scores)
    further = [line for line in before if not line.endswith(" 0")]
    assert 0 < len(further) < 6
    # What was written is not trained again; at most one training was lost.
    assert len(set(further) & set(after)) <= 1
    assert len({*further, *after}) == 6
