"""The report of a search: its table, main effects, the comparison with the default pair, plots."""

import csv
import doctest
import itertools
import json
import math
import sys
import types

import numpy as np
import pytest
from scipy import stats

from keras_gates.tuning import records, report
from keras_gates.tuning.records import Execution, Search, Trial
from keras_gates.tuning.report import FIELDS, effects, pairs, search_report
from keras_gates.tuning.report.comparison import compare
from keras_gates.tuning.report.effects import main_effects

NAN = math.nan


def finished(name, values, *scores, seconds=2.0, **further):
    """A trial that finished with one score per seed, and its histories, which rise to it."""
    executions = [
        Execution(
            seed,
            "finished",
            epoch=3,
            score=score,
            best_epoch=3,
            history={"val_accuracy": [score - 0.2, score - 0.1, score]},
            seconds=seconds,
            **further,
        )
        for seed, score in enumerate(scores)
    ]
    return Trial(name, values, "COMPLETED", executions)


def diverged(name, values, *, after=()):
    """A trial whose last training diverged in the second epoch."""
    reason = "loss became nan in epoch 2, batch 3"
    history = {"val_accuracy": [0.3], "loss": [2.0, NAN]}
    last = Execution(len(after), "diverged", 2, reason, history=history, seconds=1.0)
    return Trial(name, values, "FAILED", [*finished("", {}, *after).executions, last])


def pair(gate, candidate, **values):
    return {"gate_activation": gate, "candidate_activation": candidate, **values}


def searched(trials, objective="val_accuracy", direction="max"):
    return Search(objective, direction, trials)


def written(folder, trials, objective="val_accuracy", direction="max"):
    """The trials on disk, as a tuner leaves them."""
    records.write_json(folder / "search.json", {"objective": objective, "direction": direction})
    for trial in trials:
        its = folder / f"trial_{trial.trial_id}"
        its.mkdir()
        values = {"hyperparameters": {"space": [], "values": trial.values}}
        state = {"trial_id": trial.trial_id, "status": trial.status, **values}
        records.write_json(its / "trial.json", state)
        if trial.executions:
            records.write_executions(its, trial.executions)
    return folder


DEFAULT, HARD, RELU = pair("sigmoid", "tanh"), pair("hard_sigmoid", "tanh"), pair("relu", "tanh")


@pytest.fixture
def mixed(tmp_path):
    """A search in which everything happens that may."""
    return written(
        tmp_path,
        [
            finished("00", DEFAULT, 0.70, 0.72, 0.74, parameters=120, sparsity=0.0),
            diverged("01", RELU),
            finished("02", HARD, 0.80, 0.82, 0.84, parameters=120, sparsity=0.25, seconds=4.0),
            Trial("03", DEFAULT, "FAILED", [Execution(0, "raised", 0, "ValueError: a | b\nc")]),
            Trial("04", HARD, "FAILED", [Execution(0, "pruned", 1, "no better than others")]),
            Trial("05", RELU, "RUNNING", []),
            finished("06", pair("tanh_gate", "relu", activation_l1=1e-3), 0.6, 0.6, 0.6),
            Trial("07", DEFAULT, "COMPLETED", []),
            Trial("08", HARD, "FAILED", []),
            diverged("09", pair("relu", "relu", activation_l1=0.0), after=(0.9,)),
            Trial("10", DEFAULT, "RUNNING", finished("", {}, 0.9).executions),
        ],
    )


# ---------------------------------------------------------------------- the table


def test_the_table_has_every_trial_once_and_the_best_first(mixed):
    found = search_report(mixed)
    ids = [row["trial"] for row in found.trials]
    assert ids == ["02", "00", "06", "01", "03", "04", "05", "07", "08", "09", "10"]
    assert [row["rank"] for row in found.trials] == [1, 2, 3] + [None] * 8
    assert found.counts == {
        "finished": 3, "diverged": 2, "raised": 3, "pruned": 1, "running": 2,
    }  # fmt: skip
    best = found.best
    assert best is found.trials[0]
    assert best["score"] == pytest.approx(0.82)
    assert best["spread"] == pytest.approx(0.02)
    expected = {
        "seeds": 3, "diverged": 0.0, "sparsity": 0.25, "parameters": 120, "epochs": 3,
        "seconds": 12.0, "reason": None, "gate_activation": "hard_sigmoid",
    }  # fmt: skip
    assert {name: best[name] for name in expected} == expected
    by_id = {row["trial"]: row for row in found.trials}
    assert by_id["01"]["diverged"] == 1.0
    assert by_id["09"]["diverged"] == 0.5
    assert by_id["09"]["reason"] == "loss became nan in epoch 2, batch 3 (seed 1)"
    assert by_id["09"]["score"] is by_id["09"]["spread"] is None
    for lost in ("07", "08"):
        assert by_id[lost]["outcome"] == "raised"
        assert by_id[lost]["reason"] == "no score is on record"
    assert found.choices == ["gate_activation", "candidate_activation", "activation_l1"]
    assert "activation_l1" not in best


def test_a_score_that_is_no_number_has_no_rank(tmp_path):
    trials = [finished("0", DEFAULT, NAN, 0.9), finished("1", HARD, 0.2)]
    found = search_report(written(tmp_path, trials))
    assert [row["trial"] for row in found.trials] == ["1", "0"]
    assert (found.trials[1]["outcome"], found.trials[1]["score"]) == ("raised", None)
    assert "no score is on record" in str(found)


def test_of_a_loss_the_least_is_best(tmp_path):
    trials = [finished("0", DEFAULT, 0.5), finished("1", HARD, 0.2), finished("2", HARD, 0.9)]
    found = search_report(written(tmp_path, trials, "val_loss", "min"))
    assert [row["trial"] for row in found.trials] == ["1", "0", "2"]
    assert found.comparison.difference == pytest.approx(0.3)
    assert "minimum of val_loss\n3 trials" in str(found)


def test_hyperbands_own_values_are_no_choices(tmp_path):
    own = {"tuner/epochs": 3, "tuner/initial_epoch": 0, "tuner/bracket": 1, "tuner/round": 0}
    longer = {**own, "tuner/epochs": 9, "tuner/initial_epoch": 3, "tuner/trial_id": "0000"}
    later = finished("0002", {**HARD, **longer}, 0.8, 0.9)
    for execution in later.executions:
        execution.epoch = 6  # the history has epochs 4 to 6
    trials = [
        finished("0000", {**HARD, **own}, 0.6, 0.7),
        finished("0001", {**DEFAULT, **own}, 0.5, 0.6),
        later,
    ]
    found = search_report(written(tmp_path, trials))
    assert found.choices == ["gate_activation", "candidate_activation"]
    assert [row["epochs"] for row in found.trials] == [6, 3, 3]
    np.testing.assert_allclose(found.curves["0002"][0], [NAN, NAN, NAN, 0.6, 0.7, 0.8])
    assert found.comparison.verdict == "fewer epochs"
    assert "up to epoch 9, the default pair only up to 3" in found.comparison.sentence
    assert "differ in more" not in found.comparison.sentence
    assert "tuner/epochs" in {effect.choice for effect in found.effects}


def test_nothing_finished_yet(tmp_path):
    found = search_report(written(tmp_path, []))
    assert str(found).startswith("Search for the maximum of val_accuracy\n0 trials: 0 finished")
    assert found.best is None
    assert found.trials == found.effects == []
    trials = [diverged("0", RELU), diverged("1", DEFAULT), Trial("2", HARD, "RUNNING", [])]
    (tmp_path / "b").mkdir()
    found = search_report(written(tmp_path / "b", trials))
    assert found.comparison.verdict == "nothing finished"
    assert {(e.level, e.effect, e.diverged) for e in found.effects} == {
        ("relu", None, 1.0), ("sigmoid", None, 1.0),
    }  # fmt: skip
    assert "0 finished, 2 diverged" in str(found)
    assert "nothing to compare" in str(found)


def test_csv_markdown_and_json_hold_the_same(mixed, tmp_path):
    found = search_report(mixed)
    found.to_csv(tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*FIELDS, *found.choices]
    for row, given in zip(rows, found.trials, strict=True):
        for name, text in row.items():
            value = given.get(name)
            assert text == ("" if value is None else str(value))
    lines = found.to_markdown().splitlines()
    assert len(lines) == 2 + len(found.trials)
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(rows[0]) + 1}
    assert "ValueError: a \\| b c (seed 0)" in lines[6]
    assert lines[2].startswith("| 02 | 1 | finished | 0.82 | 0.02 | 3 |")
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["best"] == plain["trials"][0]
    assert plain["comparison"]["best"] == "02"
    assert plain["effects"][0]["choice"] == "gate_activation"


def test_a_hyperparameter_with_the_name_of_a_field_keeps_its_own_column(tmp_path):
    trials = [finished("0", {**DEFAULT, "seeds": 8}, 0.7)]
    found = search_report(written(tmp_path, trials))
    assert (found.best["seeds"], found.best["hp/seeds"]) == (1, 8)


def test_dataframe(mixed, monkeypatch):
    found = search_report(mixed)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas.*pip install pandas"):
        found.to_dataframe()
    stub = types.SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns))
    monkeypatch.setitem(sys.modules, "pandas", stub)
    rows, columns = found.to_dataframe()
    assert rows is found.trials
    assert columns == [*FIELDS, *found.choices]


def test_a_figure_that_is_no_number_is_printed_in_capitals(tmp_path):
    trials = [finished("0", DEFAULT, 0.7, sparsity=NAN), finished("1", HARD, 0.8, sparsity=0.5)]
    found = search_report(written(tmp_path, trials))
    row = next(line for line in str(found).splitlines() if line.split()[:2] == ["2", "0"])
    assert "NaN" in row.split()
    for text in (row, found.to_markdown(), found._repr_html_()):
        assert "nan" not in text


def test_print(mixed):
    text = str(search_report(mixed))
    assert text.splitlines()[1] == (
        "11 trials: 3 finished, 2 diverged, 3 raised, 1 pruned, 2 running."
    )
    assert "The best trial (02: hard_sigmoid + tanh)" in text
    assert "Time: the best took 4 s per training, 2 times that of the default pair" in text
    failed = next(line for line in text.splitlines() if line.split()[:2] == ["01", "diverged"])
    assert "gate_activation=relu, candidate_activation=tanh" in failed
    assert failed.endswith("loss became nan in epoch 2, batch 3 (seed 0)")
    assert "ValueError: a | b c (seed 0)" in text
    table = text.split("Best trials\n")[1].split("\n\n")[0].splitlines()[1:]
    assert table[1].split()[:5] == ["1", "02", "0.82", "0.02", "3"]
    assert table[1].split()[-3:] == ["hard_sigmoid", "tanh", "-"]
    effect = next(
        line for line in text.splitlines() if line.split()[:2] == ["gate_activation", "relu"]
    )
    assert effect.endswith("2 of 2")
    assert "no trial with it finished" in effect


def test_equal_times_are_told_in_words(tmp_path):
    trials = [finished("0", pair("sigmoid", "tanh"), 0.5), finished("1", HARD, 0.6)]
    text = str(search_report(written(tmp_path, trials)))
    assert "Time: the best took 2 s per training, as long as the default pair." in text


def test_print_shows_epochs_where_they_differ(tmp_path):
    short = finished("1", HARD, 0.6)
    short.executions[0].epoch = 1
    text = str(search_report(written(tmp_path, [finished("0", HARD, 0.7), short])))
    names, *rows = text.split("Best trials\n")[1].split("\n\n")[0].splitlines()[1:]
    column = names.split().index("epochs")
    assert [row.split()[column] for row in rows] == ["3", "1"]
    (tmp_path / "a").mkdir()
    alike = [finished("0", HARD, 0.7), finished("1", RELU, 0.6)]
    assert "epochs" not in str(search_report(written(tmp_path / "a", alike)))


def test_print_tells_a_reason_once(tmp_path):
    trials = [diverged("0", RELU), diverged("1", HARD), finished("2", DEFAULT, 0.7)]
    text = str(search_report(written(tmp_path, trials)))
    assert text.count("loss became nan in epoch 2, batch 3") == 1
    (again,) = [line for line in text.splitlines() if line.endswith("as trial 0")]
    assert again.split() == ["1", "diverged", "gate_activation=hard_sigmoid", "as", "trial", "0"]


def test_print_leaves_out_effects_of_nothing(tmp_path):
    raised = [
        Trial(name, values, "FAILED", [Execution(0, "raised", 0, "ValueError: no")])
        for name, values in (("0", RELU), ("1", HARD))
    ]
    assert "Main effects" not in str(search_report(written(tmp_path, raised)))
    (tmp_path / "a").mkdir()
    some = [diverged("0", RELU), *raised[1:]]
    assert "Main effects" in str(search_report(written(tmp_path / "a", some)))


def test_a_difference_of_rounding_is_none(tmp_path):
    trials = [finished("0", DEFAULT, 0.7, 0.8), finished("1", HARD, 0.7, 0.8 + 1e-9)]
    found = compare(searched(trials))
    assert found.difference == 0
    assert "by 0 in val_accuracy" in found.sentence
    assert "takes about" not in found.sentence


def test_print_tells_of_a_quicker_trial_as_good(tmp_path):
    trials = [
        finished("0", DEFAULT, 0.5, 0.6),
        finished("1", HARD, 0.6, 0.7, seconds=9.0),
        finished("2", HARD, 0.59, 0.69, seconds=3.0),
    ]
    text = str(search_report(written(tmp_path, trials)))
    assert "took 9 s per training, 4.5 times that of the default pair; trial 0, within" in text
    (tmp_path / "a").mkdir()
    alike = [finished("0", HARD, 0.5, 0.6, seconds=1.9), finished("1", HARD, 0.6, 0.7)]
    text = str(search_report(written(tmp_path / "a", alike)))
    assert "took 2 s per training; no trial within the noise of it was much quicker." in text
    several = [finished(f"{i:02}", {**HARD, "units": i}, 0.7) for i in range(13)]
    (tmp_path / "b").mkdir()
    text = str(search_report(written(tmp_path / "b", several)))
    assert "3 more are in `trials`" in text
    assert "took 2 s per training.\n" in text


def test_takes_a_tuner_or_its_folder(mixed):
    by_path = search_report(mixed)
    assert search_report(str(mixed)).to_dict() == by_path.to_dict()
    tuner = types.SimpleNamespace(project_dir=str(mixed))
    assert search_report(tuner).to_dict() == by_path.to_dict()


def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match="`tuner_or_folder` must be a tuner.*Received: 3"):
        search_report(3)
    with pytest.raises(ValueError, match="holds no search: there is no search.json"):
        search_report(tmp_path)


@pytest.mark.parametrize("module", [report, effects, records], ids=lambda module: module.__name__)
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# ---------------------------------------------------------------------- scopes of activation_space


def test_choices_under_several_conditions_are_one(tmp_path):
    trials = [
        finished("0", {"cell": "gru", "gru/candidate_activation": "tanh",
                       "gru/tanh+relu/gate_activation": "sigmoid"}, 0.7),
        finished("1", {"cell": "gru", "gru/candidate_activation": "elu",
                       "gru/elu/gate_activation": "hard_sigmoid", "gru/clipping": "none"}, 0.8),
        finished("2", {"cell": "simple", "simple/candidate_activation": "tanh"}, 0.6),
    ]  # fmt: skip
    found = search_report(written(tmp_path, trials))
    assert found.choices == ["cell", "candidate_activation", "gate_activation", "clipping"]
    assert found.best["gate_activation"] == "hard_sigmoid"
    assert found.comparison.default == "0"


def test_scopes_of_layers_stay():
    values = {"layer_1/cell": "lstm", "layer_1/lstm/candidate_activation": "relu"}
    assert list(records.unscoped(values)) == ["layer_1/cell", "layer_1/candidate_activation"]
    two = {"candidate_activation": "relu", "relu/x": 1, "x": 2, "adam/x": 3}
    assert records.unscoped(two) == two  # never two of one name
    values = {"layer_1/gate_activation": "sigmoid", "layer_2/gate_activation": "relu"}
    assert pairs.activations_of(values) == (None, "sigmoid / relu", None)
    assert not pairs.is_default(values)
    assert pairs.is_default({"layer_1/gate_activation": "sigmoid"})
    assert pairs.is_default({"cell": "simple", "candidate_activation": "tanh"})
    assert not pairs.is_default({"cell": "simple", "units": 3})


# ---------------------------------------------------------------------- main effects


def factorial(score, levels, repeats=1):
    """One trial for every combination of levels, as often as asked, scored by a function."""
    combinations = list(itertools.product(*levels.values())) * repeats
    trials = []
    for i, combination in enumerate(combinations):
        values = dict(zip(levels, combination, strict=True))
        trials.append(finished(f"{i:03}", values, score(i, **values)))
    return trials


def effect_of(found, choice):
    return {e.level: e for e in found if e.choice == choice}


def test_effects_are_deviations_of_the_levels_means(rng):
    gates, candidates = ["sigmoid", "relu_gate", "tanh_gate"], ["tanh", "relu"]
    scores = rng.normal(size=(2, 3, 2))  # repeats, gates, candidates
    trials = factorial(
        lambda i, **_: float(scores.reshape(-1)[i]), {"gate": gates, "candidate": candidates}, 2
    )
    found = main_effects(searched(trials))
    # By hand: 12 scores; the variance of a level's deviation from the mean of so many levels of
    # the same size is s^2 / 12 * (levels - 1).
    for of, levels, by_level in (
        ("gate", gates, scores.transpose(1, 0, 2).reshape(3, -1)),
        ("candidate", candidates, scores.transpose(2, 0, 1).reshape(2, -1)),
    ):
        freedom = 12 - len(levels)
        s2 = ((by_level - by_level.mean(axis=1, keepdims=True)) ** 2).sum() / freedom
        margin = stats.t.ppf(0.975, freedom) * math.sqrt(s2 / 12 * (len(levels) - 1))
        for level, mean in zip(levels, by_level.mean(axis=1) - scores.mean(), strict=True):
            effect = effect_of(found, of)[level]
            assert effect.effect == pytest.approx(mean)
            assert effect.low == pytest.approx(mean - margin)
            assert effect.high == pytest.approx(mean + margin)
            assert effect.finished == 12 / len(levels)
            minimum = main_effects(searched(trials, direction="min"))
            assert effect_of(minimum, of)[level].effect == pytest.approx(-mean)


def test_two_levels_of_unequal_number_differ_as_the_t_test_says(rng):
    few, many = rng.normal(size=3), rng.normal(size=9) + 0.5
    trials = [finished(f"a{i}", {"gate": "relu"}, float(s)) for i, s in enumerate(few)]
    trials += [finished(f"b{i}", {"gate": "tanh"}, float(s)) for i, s in enumerate(many)]
    effect = effect_of(main_effects(searched(trials)), "gate")["tanh"]
    interval = stats.ttest_ind(many, few).confidence_interval(0.95)
    assert 2 * effect.effect == pytest.approx(many.mean() - few.mean())
    assert (2 * effect.low, 2 * effect.high) == pytest.approx((interval.low, interval.high))


def random_search(rng, count, noise):
    """Trials of four candidates, as if drawn by an oracle that has a liking for some; and the true
    effects."""
    truth = {"tanh": 0.5, "relu": -0.1, "elu": -0.1, "softsign": -0.3}
    trials = []
    for i in range(count):
        candidate = list(truth)[min(rng.geometric(0.5), len(truth)) - 1]
        score = float(3 + truth[candidate] + noise * rng.normal())
        trials.append(finished(f"{i:03}", {"candidate": candidate}, score))
    return trials, truth


def test_intervals_cover_the_truth_in_95_of_100_searches():
    rng = np.random.default_rng(0)
    covered, zero = [], []
    for _ in range(400):
        trials, truth = random_search(rng, 30, 0.5)
        found = effect_of(main_effects(searched(trials)), "candidate")
        if found["relu"].effect is None or len(found) < 4:
            continue  # a level that was never drawn: the deviation is from another mean
        covered.append(found["relu"].low <= truth["relu"] <= found["relu"].high)
        zero.append(found["tanh"].low <= 0 <= found["tanh"].high)
    assert len(covered) > 350
    assert 0.925 < np.mean(covered) < 0.975
    assert np.mean(zero) < 0.5  # and they are narrow enough to find what there is


def noisy(rng, levels, counts, seeds, of_trials, of_seeds, of_both, of_trainings):
    """Trials without any effect of `levels`: each score has a part of its trial, one of its seed,
    one of its level with that seed, and one of its own."""
    shared, own = rng.normal(size=seeds), rng.normal(size=(len(levels), seeds))
    trials = []
    for k, (level, count) in enumerate(zip(levels, counts, strict=True)):
        for i in range(count):
            scores = of_trials * rng.normal() + of_seeds * shared + of_both * own[k]
            scores = scores + of_trainings * rng.normal(size=seeds)
            trials.append(finished(f"{level} {i}", {"cell": level}, *map(float, scores)))
    return trials


# How much of a score is from its trial, its seed, its level with the seed, and the training alone.
NOISES = {
    "of trials": (1.0, 0.0, 0.0, 0.3),
    "of trainings": (0.0, 0.0, 0.0, 1.0),
    "shared by all with a seed": (0.3, 2.0, 0.0, 0.5),
    "shared by a level with a seed": (0.3, 1.0, 0.5, 0.5),
    "shared by a level with a seed alone": (0.0, 0.0, 1.0, 0.2),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize(("counts", "seeds"), [((9, 9, 9), 2), ((3, 6, 12), 3), ((8, 8), 4)])
def test_where_nothing_has_an_effect_5_of_100_intervals_leave_0_out(noise, counts, seeds):
    rng = np.random.default_rng(5)
    levels = ["gru", "lstm", "simple"][: len(counts)]
    runs, without = 600, 0
    for _ in range(runs):
        trials = noisy(rng, levels, counts, seeds, *noise)
        effect = effect_of(main_effects(searched(trials)), "cell")["gru"]
        assert effect.seeds == seeds
        without += not effect.low <= 0 <= effect.high
    assert 0.01 < without / runs < 0.08


def test_where_nothing_has_a_slope_5_of_100_intervals_leave_0_out():
    rng = np.random.default_rng(2)
    runs, seeds, without, narrow = 600, 4, 0, []
    for run in range(runs):
        rates, tilt = np.linspace(-1, 1, 20), rng.normal(size=seeds) * (run % 2)
        trials = [
            finished(f"{i}", {"x": float(x)}, *map(float, x * tilt + rng.normal(size=seeds)))
            for i, x in enumerate(rates)
        ]
        (effect,) = main_effects(searched(trials))
        without += not effect.low <= 0 <= effect.high
        narrow.append(effect.high - effect.low)
    assert 0.01 < without / runs < 0.08
    assert np.median(narrow[::2]) < 0.5 * np.median(narrow[1::2])


def test_the_noise_of_seeds_by_hand():
    """Levels that are two apart with one seed and the other way round with the other."""
    a = [finished(f"a{i}", {"cell": "a"}, 1.0 + i / 10, -0.8 + i / 10) for i in range(3)]
    b = [finished(f"b{i}", {"cell": "b"}, -1.0 + i / 10, 1.0 + i / 10) for i in range(3)]
    effect = effect_of(main_effects(searched([*a, *b])), "cell")["a"]
    assert effect.effect == pytest.approx(0.05)
    # The effect is 1 with one seed and -0.9 with the other, whose mean has the variance 0.95^2; of
    # trials it is 0.01 (within the levels) * (0.5^2 / 3 + 0.5^2 / 3). Trainings have no noise.
    by_seeds, by_trials = 0.95**2, 0.01 / 6
    total = by_seeds + by_trials
    freedom = total**2 / (by_seeds**2 / 1 + by_trials**2 / 4)
    margin = stats.t.ppf(0.975, freedom) * math.sqrt(total)
    assert effect.high == pytest.approx(0.05 + margin, rel=1e-6)
    for trial in [*a, *b]:
        del trial.executions[1]
    effect = effect_of(main_effects(searched([*a, *b])), "cell")["a"]
    assert effect.effect == pytest.approx(1.0)
    assert effect.seeds == 1
    assert effect.high == pytest.approx(1 + stats.t.ppf(0.975, 4) * math.sqrt(by_trials))


def test_print_says_which_noise_the_intervals_hold(mixed, tmp_path):
    assert "The intervals hold the noise of trials and of seeds.\n" in str(search_report(mixed))
    (tmp_path / "one").mkdir()
    one = [finished("0", DEFAULT, 0.7), finished("1", HARD, 0.6), finished("2", HARD, 0.5)]
    text = str(search_report(written(tmp_path / "one", one)))
    assert "of trials alone; of the noise of seeds nothing is known with one seed" in text


def test_levels_without_a_finished_trial_tell_how_often_they_diverged():
    trials = factorial(lambda i, **_: 0.1 * i, {"gate": ["sigmoid", "tanh"]}, 2)
    trials += [diverged("x", {"gate": "relu"}), diverged("y", {"gate": "sigmoid"}, after=(0.5,))]
    trials += [Trial("z", {"gate": "elu"}, "RUNNING", [])]
    found = effect_of(main_effects(searched(trials)), "gate")
    assert set(found) == {"sigmoid", "tanh", "relu"}
    assert found["relu"].effect is None
    assert found["relu"].reason == "no trial with it finished"
    assert [found[g].diverged for g in found] == pytest.approx([1.0, 1 / 3, 0.0])
    assert [found[g].finished for g in found] == [0, 2, 2]
    assert found["tanh"].effect == pytest.approx(0.05)  # scores 0, 0.1, 0.2, 0.3
    alone = [*factorial(lambda i, **_: 0.1 * i, {"gate": ["sigmoid"]}, 3), diverged("x", RELU)]
    alone[-1].values = {"gate": "relu"}
    found = effect_of(main_effects(searched(alone)), "gate")
    assert found["sigmoid"].effect is None
    assert found["sigmoid"].reason == "no trial with another value finished"


def test_conditional_choices_are_compared_where_they_are():
    values = [{"clipping": "none"}] * 2
    values += [{"clipping": "state", "norm": n} for n in (0.1, 1.0, 10.0)] * 2
    scores = [1.0, 1.2, 2.0, 3.0, 7.0, 2.2, 3.2, 7.2]
    trials = [finished(str(i), *given) for i, given in enumerate(zip(values, scores, strict=True))]
    found = main_effects(searched(trials))
    # Means by hand: none 1.1; norms 2.1, 3.1, 7.1, and their mean 4.1.
    assert effect_of(found, "clipping")["state"].effect == pytest.approx(1.5)
    assert effect_of(found, "clipping")["none"].effect == pytest.approx(-1.5)
    norm = effect_of(found, "norm")
    assert {n: e.effect for n, e in norm.items()} == pytest.approx({0.1: -2, 1.0: -1, 10.0: 3})


def test_numbers_of_many_values_have_a_slope(rng):
    rates = 10 ** rng.uniform(-4, -1, size=20)
    scores = 0.7 + 0.05 * np.log10(rates) + 0.01 * rng.normal(size=20)
    trials = [finished(f"{i:02}", {"rate": float(r)}, float(s)) for i, (r, s) in
              enumerate(zip(rates, scores, strict=True))]  # fmt: skip
    (effect,) = main_effects(searched(trials))
    expected = stats.linregress(np.log10(rates), scores)
    assert effect.level == "per factor of 10"
    assert effect.effect == pytest.approx(expected.slope)
    margin = stats.t.ppf(0.975, 18) * expected.stderr
    assert (effect.low, effect.high) == pytest.approx(
        (expected.slope - margin, expected.slope + margin)
    )
    assert effect.finished == 20
    for trial in trials:
        trial.values = {"shift": 1e7 * (trial.values["rate"] - 0.02)}
    (effect,) = main_effects(searched(trials))
    assert effect.level == "per unit"
    expected = stats.linregress(1e7 * (rates - 0.02), scores)
    assert effect.effect == pytest.approx(expected.slope)
    # Among some only, beside a choice that decides on it: the slope over those.
    some = [{"opt": "a", "rate": float(r)} for r in rates[:10]] + [{"opt": "b"}] * 10
    for trial, values in zip(trials, some, strict=True):
        trial.values = values
    found = main_effects(searched(trials))
    expected = stats.linregress(np.log10(rates[:10]), scores[:10])
    assert effect_of(found, "rate")["per factor of 10"].effect == pytest.approx(expected.slope)
    between = (scores[:10].mean() - scores[10:].mean()) / 2
    assert effect_of(found, "opt")["a"].effect == pytest.approx(between)


def test_without_repetitions_there_are_no_intervals():
    values = [pair("sigmoid", "tanh", rate=0.1), pair("relu_gate", "tanh", rate=0.4)]
    trials = [finished(str(i), v, s) for i, (v, s) in enumerate(zip(values, (2, 8), strict=True))]
    gates = effect_of(main_effects(searched(trials)), "gate_activation")
    assert [gates[g].effect for g in ("sigmoid", "relu_gate")] == [-3, 3]
    assert gates["sigmoid"].low is gates["sigmoid"].high is gates["sigmoid"].reason is None


def test_slopes_of_few_trials():
    rates = [0.1, 0.2, 0.8]
    trials = [finished(str(i), {"rate": r}, float(i * i)) for i, r in enumerate(rates)]
    (rate,) = main_effects(searched(trials))
    expected = stats.linregress(np.log10(rates), [0, 1, 4])
    margin = stats.t.ppf(0.975, 1) * expected.stderr
    assert (rate.effect, rate.high) == pytest.approx((expected.slope, expected.slope + margin))
    trials[0] = diverged("0", {"rate": 0.1})
    (rate,) = main_effects(searched(trials))  # two points are a line
    assert (rate.low, rate.high, rate.diverged) == (None, None, pytest.approx(1 / 3))


# ---------------------------------------------------------------------- against the default pair


def test_beats_beyond_the_noise_by_hand():
    trials = [
        finished("0", DEFAULT, 0.70, 0.72, 0.74),
        finished("1", HARD, 0.80, 0.82, 0.84),
        finished("2", pair("hard_sigmoid", "relu"), 0.60, 0.64),
    ]
    found = compare(searched(trials))
    # Squared deviations 8e-4, 8e-4, 8e-4 over 2 + 2 + 1 degrees of freedom.
    noise = math.sqrt(24e-4 / 5)
    assert found.noise == pytest.approx(noise)
    assert found.degrees_of_freedom == 5
    assert found.difference == pytest.approx(0.10)
    margin = 3.163381 * noise * math.sqrt(2 / 3)  # t, 5 degrees of freedom, 0.025 / 2 above
    assert found.high - found.difference == pytest.approx(margin, rel=1e-5)
    assert found.low == pytest.approx(0.10 - margin, rel=1e-5)
    assert (found.verdict, found.best, found.default) == ("beats", "1", "0")
    assert "beats the default pair (0: sigmoid + tanh) beyond the noise, by 0.1" in found.sentence
    assert "differ in more" not in found.sentence
    # What is asked for with some candidates alone is as good as chosen with the others.
    trials[1].values = {**HARD, "clipping": "none", "activation_l1": 0.0, "initialization": "keras"}
    assert "differ in more" not in compare(searched(trials)).sentence
    trials[1].values = {**HARD, "lstm/activation_l1": 1e-4}
    assert "the cause: lstm/activation_l1 (0.0001, not 0)." in compare(searched(trials)).sentence
    losses = compare(searched(trials, "val_loss", "min"))
    assert losses.best == "2"
    assert losses.difference == pytest.approx(0.10)
    trials[1].values = {**HARD, "units": 64}
    assert (
        "more than the pair, which need not be the cause: units (64, not -)."
        in compare(searched(trials)).sentence
    )


def test_within_the_noise_says_how_many_seeds_it_takes():
    trials = [finished("0", DEFAULT, 0.70, 0.74, 0.78), finished("1", HARD, 0.73, 0.77, 0.81)]
    found = compare(searched(trials))
    assert found.verdict == "within noise"
    assert found.low < 0 < found.difference
    # The power of a t-test with that many seeds, from the noncentral distribution.
    effect = found.difference / found.noise

    def power(n):
        """Of a t-test of so many differences, each of which has the noise of two trainings."""
        critical = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(critical, n - 1, effect * math.sqrt(n / 2))

    needed = found.seeds_needed
    assert power(needed) == pytest.approx(0.8, abs=0.02)
    assert f"takes about {needed} new seeds: tuner.confirm(seeds={needed}) trains" in found.sentence
    done = compare(searched(trials), confirmed=("0", "1")).sentence
    assert done == found.sentence.partition(" To tell")[0]
    assert compare(searched(trials), confirmed=("0", "2")).sentence == found.sentence
    trials[1] = finished("1", HARD, 0.7001, 0.7401, 0.7801)
    assert "takes more than 1000 new seeds." in compare(searched(trials)).sentence
    trials = [finished("0", HARD, 0.7, 0.8), finished("1", DEFAULT, 0.7, 0.8)]
    found = compare(searched(trials))
    assert (found.verdict, found.seeds_needed, found.difference) == ("within noise", None, 0.0)
    assert "more seeds" not in found.sentence


def test_other_verdicts():
    one = compare(searched([finished("0", DEFAULT, 0.7), finished("1", HARD, 0.8)]))
    assert one.verdict == "one seed"
    assert one.noise is one.low is one.high is one.margin(1, 1) is None
    assert one.difference == pytest.approx(0.1)
    assert "nothing can be said about the noise: tuner.confirm(seeds=5) trains" in one.sentence
    best = compare(searched([finished("0", DEFAULT, 0.9, 0.8), finished("1", HARD, 0.8, 0.7)]))
    assert best.verdict == "default is best"
    assert best.difference is None
    assert "(trial 0: sigmoid + tanh) is itself the best of 2 finished trials" in best.sentence
    none = compare(searched([finished("1", HARD, 0.8, 0.7)]))
    assert none.verdict == "no default"
    assert "let it be the default of the choices, which a search begins with" in none.sentence
    tried = compare(searched([finished("1", HARD, 0.8, 0.7), diverged("2", DEFAULT)]))
    assert "No trial with the default pair (sigmoid + tanh) has finished: 2 (diverged)" in (
        tried.sentence
    )
    other = compare(searched([finished("1", {"units": 3}, 0.8, 0.7)]))
    assert "The activations are no choice of this search" in other.sentence
    assert compare(searched([])).verdict == "nothing finished"


def test_a_search_of_one_pair_says_that_nothing_was_compared():
    trials = [finished(str(i), {**DEFAULT, "units": 8 * i}, 0.5 + 0.1 * i) for i in (1, 2, 3)]
    found = compare(searched(trials))
    assert (found.verdict, found.best, found.default) == ("one pair", "3", "3")
    assert found.sentence == (
        "Nothing was compared with the default pair (3 finished trials, the best is 3: sigmoid + "
        "tanh): no other pair was tried."
    )
    failed = [diverged("4", RELU), diverged("5", RELU), Trial("6", HARD, "RUNNING", [])]
    found = compare(searched([trials[0], *failed]))
    assert found.verdict == "one pair"
    assert found.sentence.endswith(
        "(1 finished trial, the best is 1: sigmoid + tanh): no trial with another pair has "
        "finished (of 3: 2 diverged, 1 running)."
    )
    # Another pair that did worse was compared.
    assert compare(searched([*trials, finished("7", HARD, 0.1)])).verdict == "default is best"


def test_where_nothing_differs_hardly_a_search_says_beats():
    rng = np.random.default_rng(1)
    names = [pair(g, c) for g in ("sigmoid", "hard_sigmoid", "tanh_gate", "fast_gate")
             for c in ("tanh", "relu", "elu", "softsign")]  # fmt: skip

    def share(advantage):
        beats = 0
        for _ in range(300):
            scores = rng.normal(size=(len(names), 3))
            scores[5] += advantage
            trials = [finished(str(i), v, *map(float, s)) for i, (v, s) in
                      enumerate(zip(names, scores, strict=True))]  # fmt: skip
            beats += compare(searched(trials)).verdict == "beats"
        return beats / 300

    assert share(0) <= 0.05
    assert share(5) > 0.9


# ---------------------------------------------------------------------- plots


@pytest.fixture
def plt():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    yield plt
    plt.close("all")


def test_heat_map_of_pairs(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_scores

    trials = [
        finished("0", DEFAULT, 0.6, 0.8),
        finished("1", pair("sigmoid", "tanh", units=64), 0.5),
        finished("2", pair("hard_sigmoid", "relu"), 0.9),
        diverged("3", pair("hard_sigmoid", "relu")),
        diverged("4", pair("sigmoid", "relu")),
        Trial("5", pair("elu", "tanh"), "RUNNING", []),
    ]
    axes = plot_scores(search_report(written(tmp_path, trials)))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sigmoid", "hard_sigmoid"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["tanh", "relu"]
    shown = axes.images[0].get_array()
    assert shown[0, 0] == pytest.approx(0.6)
    assert shown[1, 1] == pytest.approx(0.9)
    assert shown.mask.tolist() == [[False, True], [True, False]]
    at = {t.get_position(): t.get_text() for t in axes.texts}
    assert at == {
        (0, 0): "0.6\nn = 2",
        (1, 0): "no score\n1 of 1 diverged",
        (1, 1): "0.9\nn = 1\n1 of 2 diverged",
    }
    hatched = {(p.get_x(), p.get_y()) for p in axes.patches if p.get_hatch()}
    assert hatched == {(0.5, -0.5), (0.5, 0.5)}
    assert axes.images[0].get_cmap().name == "cividis"
    axes.figure.canvas.draw()


def test_heat_map_of_one_of_several_cells(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_scores

    trials = [
        finished("0", {"cell": "gru", **DEFAULT}, 0.6),
        finished("1", {"cell": "simple", "candidate_activation": "relu"}, 0.4),
        diverged("2", {"cell": "lstm", **RELU}),
    ]
    found = search_report(written(tmp_path, trials, "val_loss", "min"))
    _, given = plt.subplots()
    axes = plot_scores(found, given, cell="simple")
    assert axes is given
    assert [t.get_text() for t in axes.get_yticklabels()] == ["-"]
    assert [t.get_text() for t in axes.texts] == ["0.4\nn = 1"]
    assert "simple" in axes.get_title()
    assert axes.images[0].get_cmap().name == "cividis_r"  # brighter is better
    plot_scores(found, cell="lstm").figure.canvas.draw()
    each = plot_scores(found)
    assert [panel.get_title().partition(":")[0] for panel in each] == ["simple", "gru", "lstm"]
    with pytest.raises(ValueError, match="`axes` must have one for each cell, simple, gru, lstm"):
        plot_scores(found, given)
    with pytest.raises(ValueError, match="did you mean 'simple'"):
        plot_scores(found, cell="simpel")


def test_parallel_coordinates(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_parallel

    trials = [
        finished("0", pair("sigmoid", "tanh", units=64), 0.2),
        finished("1", pair("hard_sigmoid", "relu", units=64, activation_l1=0.1), 0.8),
        finished("2", pair("tanh_gate", "relu", units=64, activation_l1=0.2), 0.5),
        diverged("3", pair("tanh_gate", "tanh", units=64)),
        Trial("4", RELU, "RUNNING", []),
    ]
    axes = plot_parallel(search_report(written(tmp_path, trials)))
    ticks = [t.get_text() for t in axes.get_xticklabels()]
    assert ticks == ["gate_activation", "candidate_activation", "activation_l1", "val_accuracy"]
    lines = axes.lines[:4]  # the worst first
    dotted = [line for line in lines if line.get_linestyle() == ":"]
    assert dotted == [lines[0]]
    assert math.isnan(dotted[0].get_ydata()[-1])
    best = lines[-1]
    # Levels by letter: hard_sigmoid, sigmoid, tanh_gate; relu, tanh; 0.1, 0.2, absent.
    assert list(best.get_ydata()) == [0, 0, 0, 1]
    assert [line.get_ydata()[-1] for line in lines[1:]] == pytest.approx([0, 0.5, 1])
    assert list(lines[1].get_ydata())[:3] == [0.5, 1, 1]
    assert best.get_color() != lines[1].get_color()
    assert best.get_linewidth() > lines[1].get_linewidth()
    axes.figure.canvas.draw()


def test_parallel_coordinates_of_numbers(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_parallel

    trials = [
        finished(f"{i:02}", {"rate": 10.0**-i, "x": float(i - 3)}, 0.1 * i) for i in range(12)
    ]
    trials.append(finished("12", {"x": 2.5}, 0.3))
    found = search_report(written(tmp_path, trials, direction="min"))
    axes = plot_parallel(found)
    best = axes.lines[12].get_ydata()
    assert best == pytest.approx([1.0, 0.0, 1.0])  # rate 1, x -3, the least score on top
    assert {"1", "1e-11", "-", "-3", "8"} <= {t.get_text() for t in axes.texts}
    absent = next(
        y for y in (line.get_ydata() for line in axes.lines) if y[1] == pytest.approx(0.5)
    )
    assert absent[0] == 0.0
    assert min(line.get_ydata()[0] for line in axes.lines[:13]) == 0.0


def test_parallel_coordinates_are_as_wide_as_there_are_choices(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_parallel

    trials = [finished(str(i), {f"choice_{k}": i for k in range(11)}, 0.1 * i) for i in range(3)]
    found = search_report(written(tmp_path, trials))
    figure = plot_parallel(found).figure
    assert figure.get_size_inches()[0] == 13
    figure.canvas.draw()
    names = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(b.x1 - a.x1 > 50 for a, b in itertools.pairwise(names))
    given = plt.figure(figsize=(5, 4))
    plot_parallel(found, given.add_subplot())
    assert given.get_size_inches()[0] == 5  # yours is as you made it
    found.to_html(tmp_path / "report.html")
    assert "width: 13in" in (tmp_path / "report.html").read_text()


def test_learning_curves_of_the_best_and_the_default(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_learning_curves

    best, default = finished("0", HARD, 0.8, 0.9), finished("1", DEFAULT, 0.5, 0.7)
    default.executions[1].history["val_accuracy"] = [0.4, NAN]
    default.executions[1].epoch = 2
    found = search_report(written(tmp_path, [best, default, finished("2", RELU, 0.1)]))
    assert set(found.curves) == {"0", "1"}
    axes = plot_learning_curves(found)
    assert plot_learning_curves(found, axes) is axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.65, 0.75, 0.85])
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.35, 0.4, 0.5])
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((0.6, 0.9))
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels[0] == "best: hard_sigmoid + tanh"
    assert labels[1] == "default pair: sigmoid + tanh"


def test_learning_curves_of_one_epoch_are_seen(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_learning_curves

    trial = finished("0", DEFAULT, 0.8)
    (execution,) = trial.executions
    execution.epoch = execution.best_epoch = 1
    execution.history = {"val_accuracy": [0.8]}
    axes = plot_learning_curves(search_report(written(tmp_path, [trial])))
    assert axes.lines[0].get_marker() == "o"


def test_scores_of_all_cells_have_one_scale(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_scores

    trials = [
        finished(str(k), {"cell": cell, **values}, score)
        for k, (cell, values, score) in enumerate(
            [("gru", DEFAULT, 0.9), ("gru", HARD, 0.7), ("lstm", DEFAULT, 0.6), ("lstm", HARD, 0.4)]
        )
    ]
    found = search_report(written(tmp_path, trials))
    for cell in ("gru", "lstm"):
        assert plot_scores(found, cell=cell).images[0].get_clim() == (0.4, 0.9)


def test_learning_curves_where_the_default_is_best(plt, tmp_path):
    from keras_gates.tuning.report.plots import plot_learning_curves

    trials = [finished("0", DEFAULT, 0.8, 0.9), finished("1", HARD, 0.5, 0.7)]
    axes = plot_learning_curves(search_report(written(tmp_path, trials)))
    assert len(axes.lines) == 1


def test_plots_of_what_cannot_be_drawn(plt, tmp_path, monkeypatch):
    from keras_gates.tuning.report.plots import plot_learning_curves, plot_parallel, plot_scores

    found = search_report(written(tmp_path, [Trial("0", DEFAULT, "RUNNING", [])]))
    with pytest.raises(ValueError, match="`report` must hold an ended trial.*'running': 1"):
        plot_scores(found)
    with pytest.raises(ValueError, match="`report` must hold finished or diverged.*'running': 1"):
        plot_parallel(found)
    with pytest.raises(ValueError, match="with a history of val_accuracy.*'running': 1"):
        plot_learning_curves(found)
    for plot in (plot_learning_curves, plot_parallel, plot_scores):
        with pytest.raises(TypeError, match="`report` must be what.*Received: str"):
            plot("searches/gates")
    (tmp_path / "b").mkdir()
    found = search_report(written(tmp_path / "b", [finished("0", DEFAULT, 0.8)]))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "keras_gates\[plots\]"'):
        plot_scores(found)
