"""KerasTuner's oracles, for searches in which trials fail, processes die and choices are unordered.

An oracle proposes the trials, hears how they ended and keeps the state of the search on disk. Those
here differ from KerasTuner's in what a failure does: it never ends the search or leads it on.
"""

import contextlib
import copy
import inspect
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import filelock
import keras
import keras_tuner
import numpy as np
from keras_tuner.engine.hyperparameters import Choice
from keras_tuner.engine.metrics_tracking import infer_metric_direction
from keras_tuner.engine.trial import Trial

from keras_gates import validation
from keras_gates.tuning import distinct, records, roles
from keras_gates.tuning.space import hyper_parameters

HyperModel: TypeAlias = (
    keras_tuner.HyperModel | Callable[[keras_tuner.HyperParameters], keras.Model]
)
Objective: TypeAlias = str | keras_tuner.Objective | Sequence[str | keras_tuner.Objective] | None

COMPLETED, FAILED = "COMPLETED", "FAILED"
# The name under which an oracle that prunes keeps the objective of each epoch of a trial.
INTERMEDIATE = "intermediate"
_MOST_COUNTED = 10_000  # models of a grid
_PAUSE = 0.5  # seconds between two looks at what other processes have done


def _factor(argument, value):
    if validation.finite_number(argument, value) <= 1:
        raise validation.invalid(argument, "a number above 1", value)


def _or_none(check):
    return lambda argument, value: None if value is None else check(argument, value)


def _check_names(objective):
    """An error for the name of a figure that KerasTuner does not know the better direction of."""
    names = [objective] if isinstance(objective, str) else objective
    for name in names if isinstance(names, (list, tuple)) else ():
        if isinstance(name, str) and infer_metric_direction(name) is None:
            usual = ["loss", "accuracy", "mean_absolute_error", "mean_squared_error"]
            hint = validation.close_matches(name, [*usual, *(f"val_{each}" for each in usual)])
            raise validation.invalid(
                "objective",
                "the name of a loss or metric of Keras that the model is compiled with, with val_ "
                "before it for that on validation data, or of any other figure a "
                "keras_tuner.Objective(name, direction) with direction 'min' or 'max'",
                name,
                hint,
            )


# Of the arguments of KerasTuner's oracles, which take whatever comes.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_trials": _or_none(validation.positive_integer),
    "hyperparameters": _or_none(hyper_parameters),
    "allow_new_entries": validation.true_or_false,
    "tune_new_entries": validation.true_or_false,
    "seed": validation.seed_or_none,
    "max_retries_per_trial": validation.nonnegative_integer,
    "max_consecutive_failed_trials": _or_none(validation.positive_integer),
    "num_initial_points": _or_none(validation.positive_integer),
    "alpha": validation.nonnegative_number,
    "beta": validation.nonnegative_number,
    "max_epochs": validation.positive_integer,
    "factor": _factor,
    "hyperband_iterations": validation.positive_integer,
}


class RobustOracle(keras_tuner.Oracle):
    """What the oracles here have in common; comes before one of KerasTuner's among the bases.

    - Any number of failing trials leaves the search going.
    - 0 is a seed.
    - What is on disk is always whole. A search that was killed goes on with every ended trial
      counted once.
    - Several processes that see one folder can run one search: whoever asks for a trial or ends
      one has the folder to itself meanwhile, and reads first what the others have written.
    - Only trials that were completed are ever among the best.
    - No model is tried twice: trials that differ only in hyperparameters that their builds do not
      ask for are one model. A search that may go on until there is no other tries every one.
    - A search begins with the defaults of all choices, which the others are compared with.
    """

    seed: int | None

    def __init__(
        self,
        *args: Any,
        seed: int | None = None,
        max_consecutive_failed_trials: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.update(seed=seed, max_consecutive_failed_trials=max_consecutive_failed_trials)
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        for name in _CHECKS.keys() & given.keys():
            _CHECKS[name](name, given[name])
        _check_names(given.get("objective"))
        super().__init__(*args, **kwargs)
        objectives = getattr(self.objective, "objectives", [self.objective])
        directions = [getattr(each, "direction", None) for each in objectives]
        if not objectives or any(d not in ("min", "max", None) for d in directions):
            direction = "a keras_tuner.Objective whose direction is 'min' or 'max'"
            expected = f"a name such as 'val_accuracy', or {direction}"
            raise validation.invalid("objective", expected, objectives)
        if seed is not None:
            self.seed = self._seed_state = seed  # KerasTuner takes 0 for no seed
        # Of the trainings: every trial gets the same seeds, in every process.
        self.first_seed = 0 if seed is None else seed
        # In a small space the last choices are found late.
        self._max_collisions = 1000
        self._lock: filelock.FileLock | None = None
        self._models = distinct.Models([])

    # ------------------------------------------------------------------ several processes

    def locked(self):
        """A context in which no other process of the search reads or writes."""
        if not roles.several():
            return contextlib.nullcontext()
        self._lock = self._lock or filelock.FileLock(os.path.join(self._project_dir, ".lock"))
        return self._lock

    @contextlib.contextmanager
    def up_to_date(self):
        """The same, where besides this process knows what others have done."""
        with self.locked() as lock:
            if lock and lock.lock_counter == 1 and os.path.exists(self._get_oracle_fname()):
                self.reload()
            yield

    def wait(self):
        """Until no trial is running or to be tried again, in whatever process."""
        while self.ongoing_trials or self._retry_queue:
            time.sleep(_PAUSE)
            with self.up_to_date():
                pass

    # ------------------------------------------------------------------ how trials begin and end

    def create_trial(self, tuner_id):
        with self.up_to_date():
            trial = super().create_trial(tuner_id)
        if trial.status == "IDLE":
            time.sleep(_PAUSE)  # KerasTuner asks again at once
        return trial

    def update_trial(self, trial_id, metrics, step=0):
        """Takes the result of a trial, instead of what a run that was cut short had reported."""
        with self.up_to_date():
            metrics_of = self.trials[trial_id].metrics
            reported = metrics_of.metrics.get(INTERMEDIATE)
            metrics_of.metrics = {} if reported is None else {INTERMEDIATE: reported}
            return super().update_trial(trial_id, metrics, step=step)

    def is_pruned(self, trial_id, epoch, value):
        """Whether to end a trial after this epoch, counted from 1, with this objective."""
        return False

    def end_trial(self, trial):
        with self.up_to_date():
            super().end_trial(trial)

    def score_trial(self, trial):
        super().score_trial(trial)
        if not math.isfinite(trial.score):
            trial.score = math.nan  # which KerasTuner knows to be a failure

    def note_read(self, trial_id, names):
        """Notes for which hyperparameters the build and `fit` of a trial have asked."""
        with self.up_to_date():
            trial = self.trials[trial_id]
            known = _read(trial) or []
            if set(names) - set(known):
                trial.read = [*dict.fromkeys([*known, *names])]
                self._save_trial(trial)

    @property
    def models(self):
        """The `Models` that have been tried."""
        # In a trial that has ended, what nobody has noted may matter. The first one has the values
        # of the build that the space was made with, which had asked for all of them.
        whole, tried = {*self.end_order, *self.start_order[:1]}, []
        # What is known comes first.
        for name, trial in sorted(self.trials.items(), key=lambda item: not _read(item[1])):
            values = trial.hyperparameters.values
            assumed = distinct.choices(values) if name in whole else None
            tried.append(distinct.Tried(values, _read(trial) or assumed))
        if tried != self._models.tried:
            self._models = distinct.Models(tried)
        return self._models

    def _duplicate(self, values):
        return values in self.models or super()._duplicate(values)

    def _random_values(self):
        if not self.start_order:
            return self.defaults()
        # What is left of a space may be too little to be found by chance.
        values = super()._random_values()
        return self.models.untried(self.hyperparameters.space) if values is None else values

    def defaults(self):
        """The default of every active choice."""
        return distinct.Models([]).untried(self.hyperparameters.space)

    @property
    def expected_trials(self):
        """How many trials there will be, as far as is known; None if it is not."""
        return self.max_trials

    def get_best_trials(self, num_trials=1):
        """The best of the completed trials; fewer than `num_trials` if there are no more."""
        found = super().get_best_trials(num_trials)
        return [trial for trial in found if trial.status == COMPLETED]

    @contextlib.contextmanager
    def _failures_count_as_worst(self):
        """Within, a failed trial looks like a completed one with the worst score so far."""
        trials = self.trials
        scores = [t.score for t in trials.values() if t.status == COMPLETED]
        worst = max if self.objective.direction == "min" else min

        def seen(trial):
            if trial.status != FAILED:
                return trial
            trial = copy.copy(trial)
            trial.status, trial.score = COMPLETED, worst(scores, default=0.0)
            return trial

        self.trials = {trial_id: seen(trial) for trial_id, trial in trials.items()}
        try:
            yield
        finally:
            self.trials = trials

    # ------------------------------------------------------------------ on disk

    def save(self):
        records.write_json(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial):
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / records.TRIAL
        records.write_json(path, {**trial.get_state(), "read": _read(trial)})

    def reload(self):
        """Goes on from what is on disk, wherever the process was killed."""
        state = records.read_json(self._get_oracle_fname())
        for path in sorted(pathlib.Path(self._project_dir).glob(f"trial_*/{records.TRIAL}")):
            its = records.read_json(path)
            trial = Trial.from_state(its)
            trial.read = its.get("read")
            if trial.trial_id in state["start_order"]:
                self.trials[trial.trial_id] = trial
            else:
                os.remove(path)  # it was never handed out
        self.set_state(state)
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if trial.trial_id in self.end_order:
                del self.ongoing_trials[tuner_id]  # KerasTuner saves before it does that
            elif trial.status in (COMPLETED, FAILED):
                super().end_trial(trial)  # its own file knew, and this one did not yet
        for tuner_id in [name for name in self.ongoing_trials if not roles.comes_back(name)]:
            self._retry_queue.append(self.ongoing_trials.pop(tuner_id).trial_id)


def _read(trial):
    """The names that a trial's build has asked for; None: not known yet."""
    return getattr(trial, "read", None)


class RandomSearchOracle(RobustOracle, keras_tuner.oracles.RandomSearchOracle):
    """Draws every choice by chance, and none twice."""


class GridSearchOracle(RobustOracle):
    """Takes all models of the space, in order, beginning with the defaults.

    KerasTuner's own forgets where it was when it is resumed, mixes up hyperparameters of one name
    under several conditions, and tries a model once for every value of what it has no use for.
    """

    def populate_space(self, trial_id):
        values = self.models.untried(self.hyperparameters.space)
        if values is not None:
            return {"status": "RUNNING", "values": values}
        # What is running may bring hyperparameters that nobody knew of.
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}

    @property
    def expected_trials(self):
        models = self.models.count(self.hyperparameters.space)
        most = _MOST_COUNTED if self.max_trials is None else self.max_trials
        return self.max_trials if models > most else models


class BayesianOptimizationOracle(RobustOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """A Gaussian process of the score, in which unordered choices are equally far apart.

    KerasTuner's own takes the values of a choice for points along a line. Failed trials count with
    the worst score so far, so that the search keeps away from where they are.

    Source: Garrido-Merchán, Hernández-Lobato, "Dealing with categorical and integer-valued
    variables in Bayesian optimization with Gaussian processes", 2020.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._random_state = np.random.RandomState(self.seed)
        self.gpr = self._make_gpr()

    def populate_space(self, trial_id):
        with self._failures_count_as_worst():
            proposed = super().populate_space(trial_id)
        if proposed["values"] is not None and self._duplicate(proposed["values"]):
            return self._random_populate_space()  # the same seeds would give the same score
        return proposed

    def _make_gpr(self):
        return _Unordered(super()._make_gpr(), self._with_one_input_per_value)

    def _with_one_input_per_value(self, x):
        """KerasTuner's vectors (points, hyperparameters), with one column per value of a choice."""
        columns = []
        for hp, column in zip(self._nonfixed_space(), np.transpose(x), strict=True):
            if isinstance(hp, Choice) and not hp.ordered:
                index = [hp.values.index(hp.prob_to_value(prob)) for prob in column]
                columns.extend(np.eye(len(hp.values))[index].T)
            else:
                columns.append(column)
        return np.transpose(columns)


class _Unordered:
    """A regressor whose inputs are changed before it sees them.

    A pipeline of scikit-learn predicts nothing before it is fitted, which KerasTuner asks for where
    trials are running elsewhere.
    """

    def __init__(self, regressor, change):
        self.regressor, self.change = regressor, change

    def fit(self, x, y):
        self.regressor.fit(self.change(x), y)
        return self

    def predict(self, x, **options):
        return self.regressor.predict(self.change(x), **options)


class HyperbandOracle(RobustOracle, keras_tuner.oracles.HyperbandOracle):
    """Many short trainings, of which the best go on for longer.

    A failed trial counts among those that do not go on. In KerasTuner's own nothing goes on where
    more have failed than were to be left behind.
    """

    def populate_space(self, trial_id):
        with self._failures_count_as_worst():
            return super().populate_space(trial_id)

    @property
    def expected_trials(self):
        brackets = range(self._get_num_brackets())
        rounds = [(b, r) for b in brackets for r in range(self._get_num_rounds(b))]
        return self.hyperband_iterations * sum(self._get_size(*each) for each in rounds)
