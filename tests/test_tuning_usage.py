"""What a search says of itself, and of mistakes: arguments, objectives, folders, progress."""

import io
import pathlib
import re
import traceback
import tracemalloc
import warnings

import keras
import keras_tuner
import numpy as np
import pytest
from helpers import ALL, BACKEND
from keras import ops

from keras_gates import tuning
from keras_gates.tuning import oracles, records, resuming
from keras_gates.tuning.progress import Progress
from keras_gates.tuning.training import described

X = np.linspace(-1, 1, 24, dtype="float32").reshape(-1, 1)
Y = 2 * X
DATA = {"validation_data": (X, Y), "batch_size": 8, "epochs": 2}


def _with_nan(values):
    values = values.copy()
    values[5] = np.nan
    return values


def build(hp):
    hp.Choice("gate", ["sigmoid", "hard_sigmoid", "tanh_gate"])
    hp.Choice("width", [4, 8, 16, 32])
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", run_eagerly=True)  # quicker than tracing
    return model


def tuner_in(folder, make=tuning.RandomSearch, model=build, objective="val_loss", **options):
    options = {"max_trials": 2, "seed": 0, **options}
    return make(model, objective, directory=folder, project_name="search", **options)


def json_files(folder):
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*.json")}


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_trials": 0}, ValueError, "`max_trials` must be a positive integer.*max_trials=0"),
        ({"max_trials": -3}, ValueError, "`max_trials` must be a positive integer"),
        ({"max_trials": "3"}, ValueError, "`max_trials` must be a positive integer.*'3'"),
        ({"seed": "a"}, ValueError, "`seed` must be an integer from 0 to.*seed='a'"),
        ({"executions_per_trial": 0}, ValueError, "`executions_per_trial` must be a positive"),
        ({"max_trails": 3}, TypeError, "takes no argument `max_trails`.*'max_trials'"),
        ({"model": None}, TypeError, "`hypermodel` must be a function of a .*hypermodel=None"),
    ],
)
def test_arguments(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        tuner_in(tmp_path, **options)
    assert not json_files(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "`max_epochs` must be a positive integer"),
        ({"max_epochs": None}, "`max_epochs` must be a positive integer"),
        ({"factor": 1}, "`factor` must be a number above 1"),
        ({"factor": float("nan")}, "`factor` must be a finite number"),
        ({"factor": "a"}, "`factor` must be a finite number"),
        ({"hyperband_iterations": 0}, "`hyperband_iterations` must be a positive integer"),
    ],
)
def test_arguments_of_hyperband(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tuning.Hyperband(build, "val_loss", directory=tmp_path, **options)


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`directory` must be a folder.*which is a file"):
        tuner_in(tmp_path / "file")


def test_an_oracle_that_cannot_take_failures_is_refused():
    with pytest.raises(ValueError, match="`oracle` must be one of the oracles of keras_gates"):
        tuning.Tuner(keras_tuner.oracles.RandomSearchOracle("loss"), build)


def test_no_epochs_are_refused_before_anything_runs(tmp_path):
    tuner = tuner_in(tmp_path)
    with pytest.raises(ValueError, match="`epochs` must be a positive integer.*epochs=0"):
        tuner.search(X, Y, epochs=0)
    assert not tuner.oracle.trials


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"x": _with_nan(X)},
            "^`x` must be of .* 1 of 24 values is NaN .*: nan in sample 5$",
        ),
        (
            {"y": ops.convert_to_tensor(_with_nan(Y))},
            "^`y` must be of finite numbers. Rec",
        ),
        ({"sample_weight": _with_nan(X)[:, 0]}, "^`sample_weight` must be of finite numbers"),
        ({"validation_data": (X, _with_nan(Y))}, r"^`validation_data\[1\]` must be of finite"),
    ],
    ids=lambda given: "" if isinstance(given, str) else next(iter(given)),
)
def test_data_that_are_not_finite_are_refused_before_anything_is_kept(changed, message, tmp_path):
    tuner = tuner_in(tmp_path)
    with pytest.raises(ValueError, match=message):
        tuner.search(**{"x": X, "y": Y, "verbose": 0, **DATA, **changed})
    assert not tuner.oracle.trials
    tuner.search(X, Y, verbose=0, **DATA)  # is no other search, once they are mended


def test_models_that_take_nan_are_searched(tmp_path):
    def build_filled(hp):
        def known_alone(y, found):
            return ops.mean(ops.square(ops.where(ops.isnan(y), found, y) - found))

        inputs = keras.Input((1,))
        filled = ops.where(ops.isnan(inputs), 0.0, inputs)
        model = keras.Model(inputs, keras.layers.Dense(hp.Choice("width", [1, 2]))(filled))
        model.compile("sgd", known_alone, run_eagerly=True)
        return model

    tuner = tuner_in(tmp_path, model=build_filled)
    tuner.search(_with_nan(X), _with_nan(Y), verbose=0, epochs=1, validation_data=(X, _with_nan(Y)))
    outcomes = [trial.outcome for trial in records.read_search(tuner.project_dir).trials]
    assert outcomes == ["finished", "finished"]


# ---------------------------------------------------------------------- the objective


@pytest.mark.parametrize(
    ("objective", "data", "message"),
    [
        ("val_los", DATA, "epoch: loss, val_loss. Received: objective='val_los'; did you mean"),
        (
            "val_loss",
            {"epochs": 3},
            "epoch: loss. Received: objective='val_loss'; `search` needs validation data",
        ),
    ],
)
def test_an_objective_that_is_not_there_ends_the_search_in_its_first_epoch(
    objective, data, message, tmp_path
):
    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    objective = keras_tuner.Objective(objective, "min")
    tuner = tuner_in(tmp_path, objective=objective)
    tuner._deepcopy_callbacks = list
    with pytest.raises(keras_tuner.errors.FatalValueError, match=re.escape(message)):
        tuner.search(X, Y, verbose=0, callbacks=[count], **data)
    assert epochs == [0]


def test_an_objective_that_only_the_hypermodel_knows_is_no_mistake(tmp_path):
    class Own(keras_tuner.HyperModel):
        def build(self, hp):
            return build(hp)

        def fit(self, hp, model, *args, **kwargs):
            model.fit(*args, **kwargs)
            return {"size": float(hp.get("width"))}

    tuner = tuner_in(tmp_path, model=Own(), objective=keras_tuner.Objective("size", "min"))
    tuner.search(X, Y, verbose=0, **DATA)
    assert [trial.outcome for trial in records.read_search(tuner.project_dir).trials] == [
        "finished",
        "finished",
    ]


# ---------------------------------------------------------------------- going on


OTHERWISE = [
    ({"epochs": 5}, "its `epochs` is 2, not 5"),
    ({"batch_size": 4}, "its `batch_size` is 8, not 4"),
    ({"batch_size": None}, "its `batch_size` is 8, not None"),
    ({"steps_per_epoch": 1}, "its `steps_per_epoch` is None, not 1"),
    ({"x": X[:16], "y": Y[:16]}, r"its `x` is \[24, 1\], not \[16, 1\]"),
    (
        {"validation_data": (X[:8], Y[:8])},
        r"its `validation_data\[0\]` is \[24, 1\], not \[8, 1\]",
    ),
    ({"class_weight": {0: 2.0}}, r"its `class_weight\[0\]` is None, not 2.0"),
    ({"x": X * 0 + 1, "y": Y * 0}, "the values of `x` are others"),
    ({"x": X[::-1]}, "the values of `x` are others"),
    ({"y": ops.convert_to_tensor(Y + 1)}, "the values of `y` are others"),
    ({"validation_data": (X, Y + 1)}, r"the values of `validation_data\[1\]` are others"),
    ({"sample_weight": np.ones(24)}, r"its `sample_weight` is None, not \[24\]"),
]


def test_trials_that_do_not_compare_are_refused(tmp_path):
    tuner_in(tmp_path).search(X, Y, verbose=0, **DATA)
    before = json_files(tmp_path)
    for changed, message in OTHERWISE:
        with pytest.raises(ValueError, match=f"were trained otherwise.*{message}.*project_name"):
            tuner_in(tmp_path, max_trials=3).search(**{"x": X, "y": Y, **DATA, **changed})
        assert before == json_files(tmp_path)
    tuner_in(tmp_path, max_trials=3).search(X, Y, verbose=0, callbacks=[], **DATA)
    assert len(records.read_search(tmp_path / "search").trials) == 3


def test_other_data_are_refused_in_confirm(tmp_path):
    tuner = tuner_in(tmp_path)
    tuner.search(X, Y, verbose=0, **DATA)
    with pytest.raises(ValueError, match="the values of `x` are others"):
        tuner.confirm(X[::-1], Y, trials=["0000", "0001"], verbose=0, **DATA)


def test_values_are_told_apart_in_any_container(rng):
    def checksums(x):
        return {
            name.split("`")[1]: found
            for name, found in resuming._training((x,), {}).items()
            if name.startswith("values")
        }

    array = rng.normal(size=(300, 5, 4)).astype("float32")
    known = checksums(array)["x"]
    same = [array.copy(order="F"), np.repeat(array, 2, 0)[::2], ops.convert_to_tensor(array)]
    assert [checksums(each)["x"] for each in same] == [known] * 3
    nested = {"left": array, "right": [array, array[::-1]]}
    found = checksums(nested)
    assert list(found) == ["x['left']", "x['right'][0]", "x['right'][1]"]
    assert found["x['left']"] == found["x['right'][0]"] == known != found["x['right'][1]"]
    texts = np.array(["ab", b"c", "\u00e4"], dtype=object)
    assert checksums(texts) != checksums(texts[[1, 0, 2]])
    # As another process had it.
    assert resuming._checksum(np.arange(6, dtype="float32")) == 2447872023
    assert resuming._checksum(texts) == 3736904364


def test_values_of_large_arrays_are_told_apart_by_some_of_all_features():
    array = np.zeros((150_000, 30), "float32")  # two steps of 3 would see every third feature
    known = resuming._checksum(array)
    for feature in range(30):
        array[:, feature] = 1
        assert resuming._checksum(array) != known
        array[:, feature] = 0
    huge = np.lib.stride_tricks.as_strided(array, (10**9,), (0,))  # of 4 GB, in no memory
    tracemalloc.start()
    assert resuming._checksum(huge)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**26


def test_what_has_no_values_at_hand_is_not_compared():
    def generator():
        yield X, Y

    class Data(keras.utils.PyDataset):
        def __getitem__(self, index):
            raise AssertionError("nothing is read")

    given = {"validation_data": Data(), "epochs": 3, "callbacks": [1], "batch_size": None}
    assert resuming._training((generator(),), given) == {"`epochs`": 3}


def test_hyperband_takes_epochs_and_does_not_use_them(tmp_path):
    tuner = tuning.Hyperband(build, "val_loss", max_epochs=2, factor=2, directory=tmp_path)
    tuner.search(X, Y, verbose=0, validation_data=(X, Y), epochs=50)
    trials = records.read_search(tuner.project_dir).trials
    assert max(e.epoch for trial in trials for e in trial.executions) == 2


def test_an_interrupted_search_says_how_to_go_on(tmp_path):
    def interrupted(hp):
        if hp.Choice("gate", ["sigmoid", "tanh_gate"]) == "tanh_gate":
            raise KeyboardInterrupt
        return build(hp)

    tuner = tuner_in(tmp_path, tuning.GridSearch, interrupted, max_trials=None)
    with pytest.raises(KeyboardInterrupt) as error:
        tuner.search(X, Y, **DATA)
    (note,) = error.value.__notes__
    assert note == f"Interrupted. The same script goes on with the search in {tuner.project_dir}"


# ---------------------------------------------------------------------- trials


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tuning.RandomSearch, {}),
        pytest.param(tuning.GridSearch, {}, marks=pytest.mark.slow),
        pytest.param(tuning.BayesianOptimization, {}, marks=pytest.mark.slow),
        (tuning.Hyperband, {"max_epochs": 2, "factor": 2, "max_trials": None}),
    ],
)
def test_a_search_begins_with_the_defaults(make, options, tmp_path):
    options = {"max_trials": 2, **options}
    options = {name: value for name, value in options.items() if value is not None}
    for seed in (0, 1) if ALL else (0,):
        tuner = make(build, "val_loss", seed=seed, directory=tmp_path / str(seed), **options)
        tuner.search(X, Y, verbose=0, **DATA)
        first, second, *_ = records.read_search(tuner.project_dir).trials
        chosen = ("gate", "width")
        assert [first.values[name] for name in chosen] == ["sigmoid", 4]
        assert [second.values[name] for name in chosen] != ["sigmoid", 4]


def test_the_number_of_trials_is_known_beforehand(tmp_path):
    hyperband = tuning.Hyperband(build, "val_loss", max_epochs=3, factor=3, directory=tmp_path)
    expected = hyperband.oracle.expected_trials
    hyperband.search(X, Y, verbose=0, validation_data=(X, Y))
    assert len(hyperband.oracle.trials) == expected
    assert tuner_in(tmp_path, tuning.GridSearch, max_trials=None).oracle.expected_trials == 12
    assert tuner_in(tmp_path, tuning.GridSearch, max_trials=5).oracle.expected_trials == 5
    endless = oracles.GridSearchOracle("loss")
    for k in range(20):
        endless.hyperparameters.Choice(f"choice_{k}", [0, 1])
    assert endless.expected_trials is None


def test_best_models_have_the_state_of_their_optimizer(tmp_path):
    tuner = tuner_in(tmp_path, max_trials=1)
    tuner.search(X, Y, verbose="auto", **DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (model,) = tuner.get_best_models()
    assert int(model.optimizer.iterations) in (3, 6)  # after one epoch or two


def test_an_error_is_kept_with_its_traceback_and_told_in_a_line(tmp_path):
    def failing(hp):
        raise RuntimeError("I do not like it")

    def built(hp):
        if hp.Choice("gate", ["sigmoid", "relu"]) == "relu":
            failing(hp)
        return build(hp)

    tuner = tuner_in(tmp_path, tuning.GridSearch, built, max_trials=13)
    tuner.search(X, Y, verbose=0, **DATA)
    failed = [t for t in records.read_search(tuner.project_dir).trials if t.outcome == "raised"]
    (execution,) = failed[0].executions
    line = failing.__code__.co_firstlineno + 1
    assert execution.reason == f"RuntimeError: I do not like it (test_tuning_usage.py, line {line})"
    assert execution.traceback.startswith("Traceback (most recent call last)")
    assert "in failing" in execution.traceback


def test_of_an_error_of_tensorflow_what_was_wrong_is_told():
    text = """Graph execution error:

Detected at node compile_loss/SparseSoftmax defined at (most recent call last):
  File "script.py", line 3, in <module>

  File "keras/src/trainer.py", line 399, in fit

Received a label value of 9 which is outside the valid range of [0, 3).
\t [[{{node compile_loss/SparseSoftmax}}]]"""
    try:
        raise ValueError(text)
    except ValueError as error:
        found = described(error)
        assert len(traceback.format_exc()) > len(found)
    assert found.startswith(
        "ValueError: Graph execution error: Received a label value of 9 which is outside"
    )
    assert "File" not in found


# ---------------------------------------------------------------------- the line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough")
def test_the_line_follows_a_training_on_a_terminal(tmp_path):
    def planted(hp):
        model = build(hp)
        if hp.get("gate") == "tanh_gate":
            model.layers[-1].bias_initializer = "zeros"
            raise RuntimeError("no such luck")
        return model

    tuner = tuner_in(tmp_path, tuning.GridSearch, planted, max_trials=None, executions_per_trial=2)
    tuner._progress.stream = Terminal()
    tuner.search(X, Y, **DATA)
    written = tuner._progress.stream.getvalue()
    lines = [line.strip() for line in re.split("[\\r\\n]", written)]
    assert any(
        line.startswith("0 of 12 trials done, 1 running (seed 2 of 2, epoch 1)") for line in lines
    )
    (first, *others) = [line for line in lines if "raised: RuntimeError: no such luck" in line]
    assert first.startswith("trial 0008 raised")
    assert len(others) == 3
    assert lines[-2].startswith("12 of 12 trials done, 4 raised; best val_loss")


def test_a_long_reason_is_cut_in_the_line():
    oracle = oracles.GridSearchOracle("loss")
    progress = Progress(oracle, Terminal())
    trial = keras_tuner.engine.trial.Trial(oracle.hyperparameters, "7", "FAILED")
    trial.message = "raised: ValueError: " + 90 * "long\n"
    oracle.end_order.append("7")
    oracle.trials["7"] = trial
    progress.on_trial_end(trial)
    first = progress.stream.getvalue().strip().splitlines()[0].strip()
    assert first.endswith("...")
    assert len(first) < 250


def _build(hp):
    raise AssertionError("nothing is built")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": []}, r"`objective` must be a name.*objective=\[\]"),
        ({"objective": keras_tuner.Objective("val_loss", "up")}, "direction is 'min' or 'max'"),
        (
            {"objective": "val_acuracy"},
            r"the name of a loss or metric of Keras.*keras_tuner.Objective\(name, direction\).* "
            "Received: objective='val_acuracy'; did you mean 'val_accuracy'",
        ),
        ({"objective": ["val_loss", "f1"]}, "`objective` must be.*objective='f1'$"),
        ({"seed": -1}, "`seed` must be an integer from 0"),
        ({"seed": "a"}, "`seed` must be an integer from 0"),
        ({"directory": 3}, "`directory` must be a path. Received: directory=3"),
        ({"project_name": 3}, "`project_name` must be a text"),
        ({"overwrite": "yes"}, "`overwrite` must be True or False"),
        ({"directory": __file__ + "/under"}, "`directory` must be a folder that can be made"),
        ({"hyperparameters": 3}, "`hyperparameters` must be a keras_tuner.HyperParameters"),
        ({"allow_new_entries": 3}, "`allow_new_entries` must be True or False"),
        ({"tune_new_entries": "a"}, "`tune_new_entries` must be True or False"),
        ({"max_retries_per_trial": -1}, "`max_retries_per_trial` must be an integer >= 0"),
        ({"max_consecutive_failed_trials": "a"}, "`max_consecutive_failed_trials` must be a posit"),
    ],
)
def test_arguments_of_a_search(given, message, tmp_path):
    options = {"objective": "val_loss", "directory": tmp_path, **given}
    for search in (tuning.RandomSearch, tuning.BayesianOptimization):
        with pytest.raises(ValueError, match=message):
            search(_build, max_trials=2, **options)


@pytest.mark.parametrize(
    ("args", "given", "message"),
    [
        ((1, 2), {"verbose": "a"}, "`verbose` must be one of 'auto', 0, 1, 2"),
        ((1, 2), {"callbacks": 3}, "`callbacks` must be a list of keras.callbacks.Callback"),
        ((1, 2), {"callbacks": ["a"]}, "`callbacks` must be a list of keras.callbacks.Callback"),
    ],
)
def test_arguments_of_search_itself(args, given, message, tmp_path):
    tuner = tuning.RandomSearch(build, "val_loss", directory=tmp_path)
    with pytest.raises(ValueError, match=message):
        tuner.search(*args, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": "a"}, "`alpha` must be a finite number >= 0. Received: alpha='a'"),
        ({"beta": float("nan")}, "`beta` must be a finite number >= 0"),
        ({"num_initial_points": -1}, "`num_initial_points` must be a positive integer"),
    ],
)
def test_arguments_of_a_gaussian_process(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tuning.BayesianOptimization(_build, "val_loss", directory=tmp_path, **given)


@pytest.mark.parametrize("max_epochs", ["a", 0])
def test_arguments_of_an_oracle(max_epochs):
    with pytest.raises(ValueError, match="`max_epochs` must be a positive integer"):
        tuning.HyperbandOracle("val_loss", max_epochs=max_epochs)


def test_arguments_of_what_looks_at_the_trials(tmp_path):
    tuner = tuner_in(tmp_path)
    for wrong in ("a", None, 1.5, -1):
        with pytest.raises(ValueError, match="`num_models` must be an integer >= 0"):
            tuner.get_best_models(wrong)
        with pytest.raises(ValueError, match="`num_trials` must be an integer >= 0"):
            tuner.get_best_hyperparameters(wrong)
    with pytest.raises(ValueError, match="`trial` must be a trial.*Received: trial='0'"):
        tuner.load_model("0")
    report = tuning.search_report(tuner)
    for path in (None, ["a"], tmp_path):
        with pytest.raises(ValueError, match="`path` must be a path of a file"):
            report.to_csv(path)
    with pytest.raises(ValueError, match="`path` must lie in a folder that is there"):
        report.to_csv(tmp_path / "nowhere" / "trials.csv")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"x": np.full((8, 4, 3), "a")}, ValueError, "`x` must be of numbers; only a `stem`"),
        ({"x": [[1.0], [1.0, 2.0]]}, ValueError, "`x` must be an array. NumPy says"),
        ({"y": np.zeros(8, int), "task": "classification"}, ValueError, "`y` .* one class alone"),
        ({"y": np.full(8, np.nan)}, ValueError, "`y` must be numbers, .*8 values are NaN or inf"),
        ({"outputs": 3}, TypeError, "from_data takes no argument `outputs`: the shape of the data"),
        ({"input_shape": (4, 3)}, TypeError, "from_data takes no argument `input_shape`"),
    ],
)
def test_data_for_a_hypermodel(given, error, message):
    given = {"x": np.zeros((8, 4, 3)), "y": np.zeros(8), "task": "regression", **given}
    with pytest.raises(error, match=message):
        tuning.GatedRNNHyperModel.from_data(**given)


def test_what_a_stem_returns_is_checked():
    model = tuning.GatedRNNHyperModel(
        "classification", (None, 3), 2, stem=lambda sequences, hp: sequences[:, 0]
    )
    with pytest.raises(ValueError, match=r"`stem` must return \(batch, time, features\).*None, 3"):
        model.build(keras_tuner.HyperParameters())


def test_arguments_of_a_space():
    hp = keras_tuner.HyperParameters()
    for wrong in (None, {}, keras_tuner.HyperParameters):
        with pytest.raises(ValueError, match="`hp` must be a keras_tuner.HyperParameters"):
            tuning.activation_space(wrong)
        with pytest.raises(ValueError, match="`hp` must be a keras_tuner.HyperParameters"):
            tuning.GatedRNNHyperModel("classification", (None, 3), 2).build(wrong)
    for name in ("unstable", "double_one_sided"):
        with pytest.raises(ValueError, match=f"`{name}` must be True or False"):
            tuning.activation_space(hp, **{name: "no"})
    with pytest.raises(ValueError, match="`units` must be a positive integer. Received: units=-4"):
        tuning.activation_space(hp, units=-4)
    for shape in ((None, -3), (0, 3), (None, True)):
        with pytest.raises(ValueError, match="`input_shape` must be"):
            tuning.GatedRNNHyperModel("classification", shape, 2)
    with pytest.raises(ValueError, match="`mask_value` must be a finite number"):
        tuning.GatedRNNHyperModel("classification", (None, 3), 2, mask_value="a")
    with pytest.raises(ValueError, match="`stem` must be a list of Keras layers"):
        tuning.GatedRNNHyperModel("classification", (None, 3), 2, stem=keras.layers.Dense)
