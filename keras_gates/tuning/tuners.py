"""KerasTuner's tuners, with trials that are repeated, may fail, and are kept on record."""

import copy
import inspect
import itertools
import math
import os
import pathlib
import sys
import time
import traceback
import warnings
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial

from keras_gates import validation
from keras_gates._keras.calls import stacklevel
from keras_gates._keras.graph import gradients_forgotten
from keras_gates._keras.tuner import TunerCallback, maybe_distribute
from keras_gates.cells.arguments import refuse_unknown
from keras_gates.tuning import distinct, launch, oracles, records, resuming, roles, training
from keras_gates.tuning.oracles import HyperModel
from keras_gates.tuning.progress import Confirming, Progress
from keras_gates.tuning.report.confirmation import Confirmation, chosen, confirmation
from keras_gates.validation import invalid


class Tuner(keras_tuner.Tuner):
    """A `keras_tuner.Tuner` whose search ends with an answer, whatever the trials do.

    - A trial trains `executions_per_trial` times, with the seeds `seed`, `seed + 1`, ... (from 0
      where the oracle has none), the same for every trial. Its score is the mean over them of the
      objective at the best epoch, and is given only if every one finished.
    - A training diverges when the loss, the objective or a weight is not finite. It is stopped, and
      its trial fails: no epoch before counts. So does a trial that raises an error. Neither ends
      the search. (An error of KerasTuner's own about wrong usage does, as a `build` that returns no
      model.)
    - `executions.json` in each trial's folder keeps every training: its history, its end and why.
    - A search that was killed goes on where it was when the same script is run again. A folder with
      another search in it is refused, and other data (arrays are known by a checksum), epochs or
      batches than its trials had.
    - While it runs, one line says what is done, running, diverged, and best.
    - `confirm` trains the best trial and the best with the default pair with further seeds, and
      tells whether the difference holds.

    Use one of `RandomSearch`, `GridSearch`, `BayesianOptimization`, `Hyperband`; or this with an
    oracle such as `OptunaOracle`.

    Args:
        oracle: one of the oracles of `keras_gates.tuning`.
        hypermodel: a function of a `keras_tuner.HyperParameters` that returns a compiled model, or
            a `keras_tuner.HyperModel`.
        executions_per_trial: how many seeds each trial is trained with.
        directory, project_name: where the search is kept. On several machines, a folder that all
            of them see.
        overwrite: whether to delete a search that is there. Refused in several processes, where
            one that is started again would delete what is done.
        **kwargs: further arguments of `keras_tuner.Tuner`.

    Raises:
        ValueError: the folder holds another search, or one that cannot go on; an argument out of
            its range.
        TypeError: an argument that is unknown, or no `hypermodel`.
    """

    def __init__(
        self,
        oracle: oracles.RobustOracle,
        hypermodel: HyperModel | None = None,
        *,
        executions_per_trial: int = 1,
        directory: str | os.PathLike | None = None,
        project_name: str | None = None,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> None:
        _check_arguments(type(self), oracle, hypermodel, kwargs)
        _check_folder(directory, project_name, overwrite)
        executions = validation.positive_integer("executions_per_trial", executions_per_trial)
        self._seeds = [oracle.first_seed + k for k in range(executions)]
        self._seed = None  # of the training under way
        self._given: tuple = ()  # what `search` was called with
        self._resumed, self._launched = False, launch.end_with_launcher()
        stream = sys.stderr if self._launched else None  # beside what the launcher says
        oracle._display = self._progress = Progress(oracle, stream)
        oracle._set_project_dir(directory or ".", project_name or "untitled_project")
        folder = {"directory": directory, "project_name": project_name, "overwrite": overwrite}
        with oracle.locked():
            super().__init__(
                oracle, hypermodel, executions_per_trial=executions, **folder, **kwargs
            )
            if not self._resumed:
                resuming.begin(self.project_dir, oracle.objective, self._settings())
                self.oracle.save()
                self.save()

    # ------------------------------------------------------------------ the search

    def search(self, *args, verbose=1, **kwargs):
        """Runs trials until the search is over.

        Of several processes only the first comes back from it, when all have ended, so that what
        follows in the script, such as a report, happens once.

        Args:
            *args, **kwargs: what `fit` is called with: data, `epochs`, `callbacks`, ...
            verbose: 0 for silence, 1 for a line on the search, 2 for the lines of `fit` as well.

        Raises:
            SystemExit: in other processes than the first, always.
            ValueError: the trials that there are had other data, epochs or batches; arrays hold
                NaN or infinities that no trial could learn from.
        """
        validation.one_of("verbose", verbose, ("auto", 0, 1, 2))
        if "epochs" in kwargs:
            validation.positive_integer("epochs", kwargs["epochs"])
        callbacks = kwargs.get("callbacks") or []
        if not isinstance(callbacks, (list, tuple)) or not all(
            isinstance(each, keras.callbacks.Callback) for each in callbacks
        ):
            raise invalid("callbacks", "a list of keras.callbacks.Callback", callbacks)
        if self._fits_as_keras_does():
            training.refuse_not_finite(
                resuming.arguments_of_fit(args, kwargs),
                lambda: self._try_build(self.oracle.get_space()),
            )
        with self.oracle.locked():
            resuming.refuse_other_training(self.project_dir, args, kwargs)
        if self._launched:
            self._launched.touch()
        self._progress.verbose = self._verbose = verbose
        self._given = args, kwargs
        with self._progress.shown(f"The same script goes on with the search in {self.project_dir}"):
            super().search(*args, **kwargs)
            if not roles.is_first():
                raise SystemExit(0)
            self.oracle.wait()
        trials = [trial.outcome for trial in records.read_search(self.project_dir).trials]
        if trials and records.FINISHED not in trials:
            diverged = ""
            if records.DIVERGED in trials:
                diverged = " Is there NaN in the data? keras_gates.diagnose(model, x, y) says so."
            warnings.warn(
                f"No trial has finished: {records.counted(trials)}. keras_gates.tuning."
                f"search_report(tuner) tells why.{diverged}",
                stacklevel=stacklevel(),
            )

    def run_trial(self, trial, *args, **kwargs):
        """Trains one trial with every seed, or with those that a run cut short has left.

        Returns:
            A list of `records.Execution`.

        Raises:
            keras_tuner.errors.FailedTrialError: a training diverged, was pruned, or has ended its
                process twice.
            Exception: what a training raised.
        """
        executions = self._on_record(trial.trial_id, records.EXECUTIONS)
        for index, seed in list(enumerate(self._seeds))[len(executions) :]:
            if any(e.outcome in (records.PRUNED, records.RAISED) for e in executions):
                break

            def report(epoch, logs, index=index):
                self._progress.under_way(
                    f" (seed {index + 1} of {len(self._seeds)}, epoch {epoch})"
                )
                objective = self.oracle.objective
                if index or not objective.has_value(logs):
                    return False
                return self.oracle.is_pruned(trial.trial_id, epoch, objective.get_value(logs))

            error = self._train(trial, seed, args, kwargs, report, executions, records.EXECUTIONS)
            if error is not None:
                raise error
        if failures := [e.failure for e in executions if e.failure]:
            raise keras_tuner.errors.FailedTrialError(failures[0])
        return executions

    def _on_record(self, trial_id, name):
        """The trainings of a trial, but for what raised an error, which is tried again. What has
        ended its process is not, and has no traceback."""
        found = records.read_executions(self.get_trial_dir(trial_id), name)
        return [e for e in found if e.outcome != records.RAISED or e.traceback is None]

    def _train(self, trial, seed, args, kwargs, report, executions, name):
        """Trains once, and puts that behind the `executions` on record under this name. Returns the
        error that was raised, or None. What has ended its process too often is not begun again."""
        folder = self.get_trial_dir(trial.trial_id)
        deaths = records.begin(folder, seed, self._launched) if self._launched else 0
        if deaths >= launch.LIVES - 1:
            why = f"its process died {deaths} times in this training; is there too little memory?"
            execution, error = records.Execution(seed, records.RAISED, reason=why), None
        else:
            with gradients_forgotten():  # else the graphs of all trainings stay in memory
                args, kwargs = self._fit_arguments(trial, args, kwargs)
                execution, error = self._execute(trial, seed, args, kwargs, report)
        executions.append(execution)
        records.write_executions(folder, executions, name)
        records.end(folder)
        if self._launched:
            self._launched.write_text("trained")
        return error

    def _fits_as_keras_does(self):
        return type(self.hypermodel).fit is keras_tuner.HyperModel.fit

    def _fit_arguments(self, trial, args, kwargs):
        """What a trial is fitted with, of what `search` was called with."""
        return args, kwargs

    def _execute(self, trial, seed, args, kwargs, report):
        """One training: its record, and the error that it raised or None."""
        # The oracle may look at what the trial has in the meantime, which does not count.
        its = copy.copy(trial)
        its.hyperparameters = distinct.noting(trial.hyperparameters)
        noted = its.hyperparameters.values

        def note_read():
            self.oracle.note_read(trial.trial_id, noted.read)

        # An objective that only a `fit` of one's own knows is not among the figures of an epoch.
        required = self._fits_as_keras_does()
        path = self._weights_path(trial.trial_id, seed)
        watch = training.Watch(seed, self.oracle.objective, path, note_read, report, required)
        record = watch.record
        callbacks = self._deepcopy_callbacks(kwargs.get("callbacks") or [])
        self._configure_tensorboard_dir(callbacks, trial, seed - self._seeds[0])
        kwargs = {"verbose": 2 if self._verbose == 2 else 0, **kwargs}
        kwargs["callbacks"] = [*callbacks, TunerCallback(self, trial), watch]
        began, error = time.perf_counter(), None
        keras.utils.set_random_seed(seed)
        self._seed = seed
        try:
            record.score = self._score(self._build_and_fit_model(its, *args, **kwargs), watch)
            if record.reason is None and not math.isfinite(record.score):
                record.outcome, record.reason = records.DIVERGED, f"the score was {record.score}"
        except keras_tuner.errors.FatalError:
            raise
        except Exception as raised:
            if record.reason is None:  # else it may have raised because it had diverged
                record.outcome, record.reason = records.RAISED, training.described(raised)
                error, record.traceback = raised, traceback.format_exc()
        finally:
            self._seed = None
        record.seconds = time.perf_counter() - began
        note_read()
        its.hyperparameters.values = noted.copy()
        trial.hyperparameters = its.hyperparameters
        if watch.model is not None:
            record.parameters = watch.model.count_params()
        if record.outcome == records.FINISHED:
            record.sparsity = training.sparsity(watch.model, args, kwargs)
        else:
            record.score = record.best_epoch = None
        return record, error

    def _score(self, results, watch):
        """The objective of one training, from what `HyperModel.fit` returned."""
        if isinstance(results, keras.callbacks.History):
            if watch.best is not None:
                return self.oracle.objective.get_value(watch.best)
            if watch.record.reason is None:
                raise keras_tuner.errors.FatalValueError(
                    "`HyperModel.fit` must hand the `callbacks` that it is given to `model.fit`, "
                    "which writes the weights of the best epoch. It did not, or no epoch was run."
                )
            return None
        if isinstance(results, dict):
            return float(self.oracle.objective.get_value(results))
        return float(results)

    def _try_run_and_update_trial(self, trial, *args, **kwargs):
        # KerasTuner's own prints a traceback for every trial that fails.
        try:
            executions = self.run_trial(trial, *args, **kwargs)
            found = [{**e.at_best(), self.oracle.objective.name: e.score} for e in executions]
            metrics = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
            step = round(np.mean([e.best_epoch or 0 for e in executions]))
            self.oracle.update_trial(trial.trial_id, metrics, step=step)
            trial.status = "COMPLETED"
        except keras_tuner.errors.FatalError:
            raise
        except Exception as error:
            once = isinstance(error, keras_tuner.errors.FailedTrialError)
            trial.status = "FAILED" if once else "INVALID"
            executions = records.read_executions(self.get_trial_dir(trial.trial_id))
            otherwise = f"{records.RAISED}: {training.described(error)}"
            trial.message = next((e.failure for e in executions if e.failure), otherwise)

    # ------------------------------------------------------------------ what it found

    def confirm(
        self,
        *args: Any,
        trials: list[str] | None = None,
        seeds: int = 5,
        verbose: int = 1,
        **kwargs: Any,
    ) -> Confirmation:
        """Trains some trials with further seeds: does the difference between them hold?

        The best of many trials owes some of its score to luck, with the seeds of the search. New
        ones have no part in that. All trials get the same, so that they compare seed by seed.

        What is trained is kept in `confirmed.json` in each trial's folder. A call that was killed
        goes on where it was when it is made again, and one that asks for more seeds trains those
        alone. A training that diverges or raises an error does not end it. After `Hyperband` all
        trials are trained from the start, for `max_epochs`.

        Args:
            *args, **kwargs: as for `search`. Default: what `search` was called with.
            trials: ids of trials, as in `search_report`, the one that should be better first.
                Default: the best, and the best with the default pair of activations; where that is
                itself the best, the next.
            seeds: how many further seeds, all calls together.
            verbose: as for `search`.

        Returns:
            A `Confirmation`, to be printed; a `search_report` made after it has it too.

        Raises:
            ValueError: no such trials, no two to compare, other data or epochs than those of the
                search, or none at all.
            SystemExit: of several processes, in others than the first.

        Example:

        >>> tuner.search(x, y, validation_split=0.2, epochs=10)
        >>> print(tuner.confirm(seeds=5))
        """
        if validation.positive_integer("seeds", seeds) < 2:
            expected = "at least 2: of one difference the noise is not known"
            raise invalid("seeds", expected, seeds)
        if not roles.is_first():
            raise SystemExit(0)
        if not (args or kwargs or self._given):
            raise ValueError(
                "`confirm` must be given the data, epochs and what else `search` was called with, "
                "because `search` was not called in this process. Received: no arguments"
            )
        args, kwargs = (args, kwargs) if args or kwargs else self._given
        with self.oracle.locked():
            resuming.refuse_other_training(self.project_dir, args, kwargs)
        search = records.read_search(self.project_dir)
        names = chosen(search, trials)
        further = [self._seeds[-1] + 1 + k for k in range(seeds)]
        done = {name: self._on_record(name, records.CONFIRMED) for name in names}
        progress = Confirming(done, further, self._progress.stream)
        progress.verbose = self._verbose = verbose
        with progress.shown(f"The same call goes on with what is in {self.project_dir}"):
            # Seed by seed: one that was killed has whole pairs.
            for seed, name in itertools.product(further, names):
                if any(e.seed == seed for e in done[name]):
                    continue

                def report(epoch, logs, name=name, seed=seed):
                    progress.under_way(f", trial {name} with seed {seed} in epoch {epoch}")

                trial = self._from_the_start(self.oracle.get_trial(name))
                self._train(trial, seed, args, kwargs, report, done[name], records.CONFIRMED)
                # The best models are those of the search.
                pathlib.Path(self._weights_path(name, seed)).unlink(missing_ok=True)
                progress.ended(name, done[name][-1].failure)
        last = {"trials": names, "seeds": further}
        records.write_json(pathlib.Path(self.project_dir, records.CONFIRMATION), last)
        return confirmation(search, done, further)

    def _from_the_start(self, trial):
        """A copy of a trial, to be trained by itself."""
        trial = copy.copy(trial)
        trial.hyperparameters = trial.hyperparameters.copy()
        return trial

    def get_best_models(self, num_models=1):
        """The models of the best trials, each with the weights of its best training and epoch.

        Raises:
            ValueError: no trial has finished.
        """
        return super().get_best_models(self._some("num_models", num_models))

    def get_best_hyperparameters(self, num_trials=1):
        """The hyperparameters of the best trials.

        Raises:
            ValueError: no trial has finished.
        """
        return super().get_best_hyperparameters(self._some("num_trials", num_trials))

    def _some(self, argument, number):
        """A number of the best trials, of which there must be one."""
        validation.nonnegative_integer(argument, number)
        if not self.oracle.get_best_trials(1):
            trials = records.read_search(self.project_dir).trials
            outcomes = records.counted(trial.outcome for trial in trials) or "none"
            raise ValueError(
                f"No trial has finished, so there is no best one. Trials: {outcomes}. "
                "keras_gates.tuning.search_report(tuner) tells why."
            )
        return number

    def _get_checkpoint_fname(self, trial_id):
        """The weights of the best training of a trial."""
        executions = records.read_executions(self.get_trial_dir(trial_id))
        scored = [e for e in executions if e.score is not None] or executions
        best = max if self.oracle.objective.direction == "max" else min
        return self._weights_path(trial_id, best(scored, key=lambda e: e.score).seed)

    def load_model(self, trial):
        """The model of a trial as it was at the best epoch of its best training."""
        if not isinstance(trial, Trial):
            expected = "a trial, as tuner.oracle.get_best_trials() gives them"
            raise invalid("trial", expected, trial)
        model = self._try_build(trial.hyperparameters)
        self._restore(model, trial.trial_id, self._get_checkpoint_fname(trial.trial_id))
        return model

    def _restore(self, model, trial_id, path):
        """Gives a new model of a trial its weights, and its optimizer the state that it had."""
        with maybe_distribute(self.distribution_strategy):
            if not model.built:
                model.build_from_config(records.read_json(self._get_build_config_fname(trial_id)))
            optimizer = getattr(model, "optimizer", None)
            if optimizer is not None and not optimizer.built:
                optimizer.build(model.trainable_variables)
            model.load_weights(path)

    def _weights_path(self, trial_id, seed):
        return str(pathlib.Path(self.get_trial_dir(trial_id)) / f"seed_{seed}.weights.h5")

    # ------------------------------------------------------------------ on disk

    def _settings(self):
        """What must be the same when a search goes on."""
        found = {
            "`tuner`": type(self).__name__,
            "`oracle`": type(self.oracle).__name__,
            "`objective`": self.oracle.objective.name,
            "`direction`": self.oracle.objective.direction,
            "`seed` and `executions_per_trial` (all seeds)": self._seeds,
        }
        for hp in self.oracle.hyperparameters.space:
            where = "".join(f" under {each.get_config()}" for each in hp.conditions)
            found[f"hyperparameter {hp.name!r}{where}"] = hp.get_config()
        return found

    def _get_tuner_fname(self):
        # One for all: a search that was begun alone goes on with several, and the other way round.
        return str(pathlib.Path(self.project_dir) / "tuner0.json")

    def save(self):
        records.write_json(self._get_tuner_fname(), self.get_state())

    def reload(self):
        self._populate_initial_space()
        resuming.refuse_another_search(self.project_dir, self._settings())
        super().reload()
        self._resumed = True
        ended, begun = len(self.oracle.end_order), len(self.oracle.start_order)
        # When this search begins others may be at their first trials already.
        running = {*self.oracle.ongoing_trials} - {self.tuner_id}
        is_new = not ended and begun == sum(map(roles.comes_back, running))
        if roles.is_first() and not is_new:
            print(
                f"The search in {self.project_dir} goes on: {ended} trials had ended, "
                f"{begun - ended} had not.",
                file=self._progress.stream,
            )


def _check_arguments(tuner_class, oracle, hypermodel, kwargs):
    """Raises an error for what KerasTuner does not name."""
    if not isinstance(oracle, oracles.RobustOracle):
        expected = "one of the oracles of keras_gates.tuning, which can take failing trials"
        raise invalid("oracle", expected, oracle)
    if hypermodel is None and tuner_class.run_trial is Tuner.run_trial:
        raise TypeError(
            "`hypermodel` must be a function of a keras_tuner.HyperParameters that returns a "
            "compiled model, or a keras_tuner.HyperModel. Received: hypermodel=None"
        )
    known = constructor_arguments(tuner_class) | constructor_arguments(type(oracle))
    refuse_unknown(tuner_class.__name__, kwargs, known, cells=())


def _check_folder(directory, project_name, overwrite):
    """Raises an error where no search can be kept."""
    if "KERASTUNER_ORACLE_IP" in os.environ:
        raise RuntimeError(
            "A search of keras_gates.tuning on several machines has no chief, as "
            "KERASTUNER_ORACLE_IP asks for: its processes share a folder. Start each with "
            "`keras-gates search --workers N --worker K script.py`."
        )
    if validation.true_or_false("overwrite", overwrite) and roles.several():
        raise ValueError(
            "`overwrite=True` cannot be given in a search by several processes: one that is "
            "started again would delete the finished trials. Delete the folder before the search "
            "begins."
        )
    validation.text_or_none("project_name", project_name)
    if not isinstance(directory, str | os.PathLike | None):
        raise invalid("directory", "a path", directory)
    try:
        os.makedirs(directory or ".", exist_ok=True)
    except OSError as error:
        why = ", which is a file" if os.path.isfile(directory) else f". {error.strerror}"
        expected = "a folder that can be made"
        raise invalid("directory", expected, str(directory), why) from error


def constructor_arguments(of):
    """Names of all arguments that the constructors of a class and its bases take."""
    own = [base.__init__ for base in of.__mro__ if "__init__" in vars(base)]
    names = {name for each in own for name in inspect.signature(each).parameters}
    return names - {"self", "args", "kwargs"}
