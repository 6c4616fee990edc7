"""KerasTuner's tuners, with trials that are repeated, may fail, and are kept on record."""

import collections
import copy
import inspect
import json
import math
import os
import pathlib
import time
import traceback
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial

from keras_gates._keras.graph import gradients_forgotten
from keras_gates._keras.tuner import TunerCallback, maybe_distribute
from keras_gates.tuning import distinct, launch, oracles, records, roles, training
from keras_gates.tuning.oracles import HyperModel
from keras_gates.tuning.progress import Confirming, Progress
from keras_gates.tuning.report.confirmation import Confirmation, chosen, confirmation
from keras_gates.tuning.report.pairs import read_unscoped
from keras_gates.validation import (
    close_matches,
    nonnegative_integer,
    one_of,
    positive_integer,
    true_or_false,
)

_CURE = "Give another `project_name`, or overwrite=True to delete what is there."


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
      another search in it is refused, and other data, epochs or batches than its trials had.
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
        if not isinstance(oracle, oracles.RobustOracle):
            raise ValueError(
                "`oracle` must be one of the oracles of keras_gates.tuning, which can take failing "
                f"trials. Received: oracle={oracle!r}"
            )
        if "KERASTUNER_ORACLE_IP" in os.environ:
            raise RuntimeError(
                "A search of keras_gates.tuning on several machines has no chief, as "
                "KERASTUNER_ORACLE_IP asks for: its processes share a folder. Start each with "
                "`python -m keras_gates.tuning worker --id K --workers N script.py`."
            )
        if overwrite and roles.several():
            raise ValueError(
                "`overwrite=True` cannot be given in a search by several processes: one that is "
                "started again would delete the finished trials. Delete the folder before the "
                "search begins."
            )
        true_or_false("overwrite", overwrite)
        if not isinstance(project_name, str | None):
            raise ValueError(
                f"`project_name` must be a text. Received: project_name={project_name!r}"
            )
        _check_arguments(type(self), oracle, hypermodel, directory, kwargs)
        executions = positive_integer("executions_per_trial", executions_per_trial)
        self._seeds = [oracle.first_seed + k for k in range(executions)]
        self._seed = None  # of the training under way
        self._given: tuple | None = None  # what `search` was called with
        self._resumed, self._launched = False, launch.end_with_launcher()
        oracle._display = self._progress = Progress(oracle)
        oracle._set_project_dir(directory or ".", project_name or "untitled_project")
        with oracle.locked():
            super().__init__(
                oracle=oracle,
                hypermodel=hypermodel,
                executions_per_trial=executions,
                directory=directory,
                project_name=project_name,
                overwrite=overwrite,
                **kwargs,
            )
            if not self._resumed:
                self._refuse_leftovers()
                records.write_json(self._search_path, self._settings())
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
            ValueError: the trials that there are had other data, epochs or batches.
        """
        one_of("verbose", verbose, ("auto", 0, 1, 2))
        if "epochs" in kwargs:
            positive_integer("epochs", kwargs["epochs"])
        callbacks = kwargs.get("callbacks") or []
        if not isinstance(callbacks, (list, tuple)) or not all(
            isinstance(each, keras.callbacks.Callback) for each in callbacks
        ):
            raise ValueError(
                "`callbacks` must be a list of keras.callbacks.Callback. Received: callbacks="
                f"{kwargs['callbacks']!r}"
            )
        with self.oracle.locked():
            self._refuse_other_training(args, kwargs)
        self._progress.verbose = self._verbose = verbose
        self._given = args, kwargs
        try:
            super().search(*args, **kwargs)
            if not roles.is_first():
                raise SystemExit(0)
            self.oracle.wait()
        except KeyboardInterrupt:
            self._progress.close()
            print(f"Interrupted. The same script goes on with the search in {self.project_dir}")
            raise
        finally:
            self._progress.close()

    def _fits_itself(self):
        """Whether models are trained by their own `fit`, and not by one of the user's."""
        return type(self.hypermodel).fit is keras_tuner.HyperModel.fit

    def run_trial(self, trial, *args, **kwargs):
        """Trains one trial with every seed, or with those that a run cut short has left.

        Returns:
            A list of `records.Execution`.

        Raises:
            keras_tuner.errors.FailedTrialError: a training diverged, was pruned, or has ended its
                process twice.
            Exception: what a training raised.
        """
        folder = self.get_trial_dir(trial.trial_id)
        executions = [e for e in records.read_executions(folder) if e.outcome != records.RAISED]
        for index, seed in enumerate(self._seeds):
            pruned = executions and executions[0].outcome == records.PRUNED
            if index < len(executions) or pruned:
                continue

            def report(epoch, logs, index=index):
                self._progress.on_epoch_end(index + 1, len(self._seeds), epoch)
                return index == 0 and self._is_pruned(trial, epoch, logs)

            execution, error = self._train(trial, seed, args, kwargs, report)
            executions.append(execution)
            self._keep(trial, executions, records.EXECUTIONS)
            if error is not None:
                raise error
        for execution in executions:
            if execution.outcome != records.FINISHED:
                raise keras_tuner.errors.FailedTrialError(
                    f"{execution.outcome}: {execution.reason} (seed {execution.seed})"
                )
        return executions

    def _train(self, trial, seed, args, kwargs, report):
        """One training: an `Execution`, and the error that it raised or None. One that has ended
        its process too often is not begun again."""
        folder = self.get_trial_dir(trial.trial_id)
        deaths = records.begin(folder, seed, self._launched) if self._launched else 0
        if deaths >= launch.LIVES - 1:
            return _fatal(seed, deaths)
        with gradients_forgotten():  # else the graphs of all trainings stay in memory
            return self._execute(trial, seed, self._fit_arguments(trial, args, kwargs), report)

    def _keep(self, trial, executions, name):
        """Writes the trainings of a trial, of which the last has just ended."""
        folder = self.get_trial_dir(trial.trial_id)
        records.write_executions(folder, executions, name)
        records.end(folder)
        if self._launched:
            self._launched.touch()

    def _fit_arguments(self, trial, args, kwargs):
        """What a trial is fitted with, of what `search` was called with."""
        return args, kwargs

    def _execute(self, trial, seed, given, report):
        """As `_train`; `report` is as in `training.Watch`."""
        args, kwargs = given
        # The oracle may look at what the trial has in the meantime, which does not count.
        its = copy.copy(trial)
        its.hyperparameters = distinct.noting(trial.hyperparameters)
        noted = its.hyperparameters.values

        def note_read():
            self.oracle.note_read(trial.trial_id, noted.read)

        watch = training.Watch(
            self.oracle.objective,
            self._weights_path(trial.trial_id, seed),
            note_read,
            report,
            required=self._fits_itself(),
        )
        callbacks = self._deepcopy_callbacks(kwargs.get("callbacks") or [])
        self._configure_tensorboard_dir(callbacks, trial, seed - self._seeds[0])
        kwargs = {"verbose": 2 if self._verbose > 1 else 0, **kwargs}
        kwargs["callbacks"] = [*callbacks, TunerCallback(self, trial), watch]
        began, error, score, trace = time.perf_counter(), None, None, None
        keras.utils.set_random_seed(seed)
        self._seed = seed
        try:
            score = self._score(self._build_and_fit_model(its, *args, **kwargs), watch)
            if watch.reason is None and not math.isfinite(score):
                watch.outcome, watch.reason = records.DIVERGED, f"the score was {score}"
        except keras_tuner.errors.FatalError:
            raise
        except Exception as raised:
            if watch.reason is None:  # else it may have raised because it had diverged
                watch.outcome, watch.reason = records.RAISED, training.described(raised)
                error, trace = raised, traceback.format_exc()
        finally:
            self._seed = None
        note_read()
        its.hyperparameters.values = noted.copy()
        trial.hyperparameters = its.hyperparameters
        finished = watch.outcome == records.FINISHED
        return records.Execution(
            seed=seed,
            outcome=watch.outcome,
            epoch=watch.epoch,
            reason=watch.reason,
            score=score if finished else None,
            best_epoch=watch.best_epoch if finished else None,
            history=watch.history,
            seconds=time.perf_counter() - began,
            parameters=None if watch.model is None else watch.model.count_params(),
            sparsity=training.sparsity(watch.model, args, kwargs) if finished else None,
            traceback=trace,
        ), error

    def _is_pruned(self, trial, epoch, logs):
        """Whether the oracle would rather go on with another trial."""
        objective = self.oracle.objective
        if not getattr(self.oracle, "prunes", False) or not objective.has_value(logs):
            return False
        value = {oracles.INTERMEDIATE: float(objective.get_value(logs))}
        return self.oracle.update_trial(trial.trial_id, value, step=epoch).status == "STOPPED"

    def _score(self, results, watch):
        """The objective of one training, from what `HyperModel.fit` returned."""
        if isinstance(results, keras.callbacks.History):
            if watch.best is not None:
                return self.oracle.objective.get_value(watch.best)
            if watch.reason is None:
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
            self._run_and_update_trial(trial, *args, **kwargs)
            trial.status = "COMPLETED"
        except keras_tuner.errors.FatalError:
            raise
        except keras_tuner.errors.FailedTrialError as failure:
            trial.status, trial.message = "FAILED", str(failure)
        except Exception:
            trial.status, trial.message = "INVALID", traceback.format_exc()

    def _run_and_update_trial(self, trial, *args, **kwargs):
        executions = self.run_trial(trial, *args, **kwargs)
        found = [e.at_best() for e in executions]
        metrics = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
        metrics[self.oracle.objective.name] = float(np.mean([e.score for e in executions]))
        epochs = [e.best_epoch for e in executions if e.best_epoch is not None]
        step = round(np.mean(epochs)) if epochs else 0
        self.oracle.update_trial(trial.trial_id, metrics, step=step)

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
            A `Confirmation`, to be printed.

        Raises:
            ValueError: no such trials, no two to compare, other data or epochs than those of the
                search, or none at all.
            SystemExit: of several processes, in others than the first.

        Example:

        >>> tuner.search(x, y, validation_split=0.2, epochs=10)
        >>> print(tuner.confirm(seeds=5))
        """
        if positive_integer("seeds", seeds) < 2:
            raise ValueError(
                "`seeds` must be at least 2: of one difference the noise is not known. Received: "
                f"seeds={seeds}"
            )
        if not roles.is_first():
            raise SystemExit(0)
        args, kwargs = self._given_to_confirm(args, kwargs)
        search = read_unscoped(self.project_dir)
        names = chosen(search, trials)
        further = [self._seeds[-1] + 1 + k for k in range(seeds)]
        done = {name: self._confirmed(name) for name in names}
        count = sum(e.seed in further for its in done.values() for e in its)
        progress = Confirming(len(names) * seeds, count, self._progress.stream)
        progress.verbose = self._verbose = verbose
        try:
            # Seed by seed: one that was killed has whole pairs.
            for seed in further:
                for name in names:
                    if all(e.seed != seed for e in done[name]):
                        self._confirm_one(name, seed, done[name], args, kwargs, progress)
        except KeyboardInterrupt:
            progress.close()
            print(f"Interrupted. The same call goes on with what is in {self.project_dir}")
            raise
        finally:
            progress.close()
        return confirmation(search, done, further)

    def _given_to_confirm(self, args, kwargs):
        """The data and what else `fit` is called with."""
        if not (args or kwargs):
            if self._given is None:
                raise ValueError(
                    "`confirm` must be given the data, epochs and what else `search` was called "
                    "with, because `search` was not called in this process. Received: no arguments"
                )
            args, kwargs = self._given
        with self.oracle.locked():
            self._refuse_other_training(args, kwargs)
        return args, kwargs

    def _confirmed(self, name):
        """The trainings of a trial with further seeds, but for what raised an error, which is tried
        again. What has ended its process is not, and has no traceback."""
        executions = records.read_executions(self.get_trial_dir(name), records.CONFIRMED)
        return [e for e in executions if e.outcome != records.RAISED or e.traceback is None]

    def _confirm_one(self, name, seed, executions, args, kwargs, progress):
        def report(epoch, logs):
            progress.on_epoch_end(name, seed, epoch)

        trial = self._from_the_start(self.oracle.get_trial(name))
        execution, _ = self._train(trial, seed, args, kwargs, report)
        executions.append(execution)
        self._keep(trial, executions, records.CONFIRMED)
        # The best models are those of the search.
        pathlib.Path(self._weights_path(name, seed)).unlink(missing_ok=True)
        progress.on_training_end(name, execution)

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
        nonnegative_integer("num_models", num_models)
        self._refuse_no_answer()
        return super().get_best_models(num_models)

    def get_best_hyperparameters(self, num_trials=1):
        """The hyperparameters of the best trials.

        Raises:
            ValueError: no trial has finished.
        """
        nonnegative_integer("num_trials", num_trials)
        self._refuse_no_answer()
        return super().get_best_hyperparameters(num_trials)

    def _refuse_no_answer(self):
        if not self.oracle.get_best_trials(1):
            search = records.read_search(self.project_dir)
            outcomes = collections.Counter(trial.outcome for trial in search.trials)
            counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
            raise ValueError(
                f"No trial has finished, so there is no best one. Trials: {counts or 'none'}. "
                "keras_gates.tuning.search_report(tuner) tells why."
            )

    def _get_checkpoint_fname(self, trial_id):
        """The weights of the best training of a trial."""
        executions = records.read_executions(self.get_trial_dir(trial_id))
        scored = [e for e in executions if e.score is not None] or executions
        best = max if self.oracle.objective.direction == "max" else min
        return self._weights_path(trial_id, best(scored, key=lambda e: e.score).seed)

    def load_model(self, trial):
        """The model of a trial as it was at the best epoch of its best training."""
        if not isinstance(trial, Trial):
            raise ValueError(
                "`trial` must be a trial, as tuner.oracle.get_best_trials() gives them. "
                f"Received: trial={trial!r}"
            )
        model = self._try_build(trial.hyperparameters)
        self._restore(model, trial.trial_id, self._get_checkpoint_fname(trial.trial_id))
        return model

    def _restore(self, model, trial_id, path):
        """Gives a new model of a trial its weights, and its optimizer the state that it had."""
        with maybe_distribute(self.distribution_strategy):
            if not model.built:
                config = pathlib.Path(self._get_build_config_fname(trial_id)).read_text()
                model.build_from_config(json.loads(config))
            optimizer = getattr(model, "optimizer", None)
            if optimizer is not None and not optimizer.built:
                optimizer.build(model.trainable_variables)
            model.load_weights(path)

    def _weights_path(self, trial_id, seed):
        return str(pathlib.Path(self.get_trial_dir(trial_id)) / f"seed_{seed}.weights.h5")

    # ------------------------------------------------------------------ on disk

    @property
    def _search_path(self):
        return pathlib.Path(self.project_dir) / records.SEARCH

    def _settings(self):
        """What must be the same when a search goes on."""
        return {
            "tuner": type(self).__name__,
            "oracle": type(self.oracle).__name__,
            "objective": self.oracle.objective.name,
            "direction": self.oracle.objective.direction,
            "seeds": self._seeds,
            "space": self.oracle.hyperparameters.get_config()["space"],
        }

    def _get_tuner_fname(self):
        # One for all: a search that was begun alone goes on with several, and the other way round.
        return str(pathlib.Path(self.project_dir) / "tuner0.json")

    def save(self):
        records.write_json(self._get_tuner_fname(), self.get_state())

    def reload(self):
        self._populate_initial_space()
        self._refuse_another_search()
        super().reload()
        self._resumed = True
        ended, begun = len(self.oracle.end_order), len(self.oracle.start_order)
        if begun and roles.is_first():
            print(
                f"The search in {self.project_dir} goes on: {ended} trials had ended, "
                f"{begun - ended} had not."
            )

    def _refuse_another_search(self):
        where = f"The folder {self.project_dir!r} holds another search"
        if not self._search_path.exists():
            raise ValueError(f"{where}, by a tuner that is not of keras_gates.tuning. {_CURE}")
        there = json.loads(self._search_path.read_text())
        difference = training.difference(there, self._settings())
        if difference:
            raise ValueError(f"{where}: {difference}. {_CURE}")

    def _refuse_other_training(self, args, kwargs):
        """An error where the trials of the search were trained otherwise."""
        search = json.loads(self._search_path.read_text())
        here = training.arguments_of_fit(args, kwargs)
        difference = training.difference(search.get("training", here), here)
        if difference:
            raise ValueError(
                f"The trials of the search in {self.project_dir!r} were trained otherwise, so "
                f"that others do not compare with them: {difference}. {_CURE}"
            )
        records.write_json(self._search_path, {**search, "training": here})

    def _refuse_leftovers(self):
        """An error where trials are left of a search that cannot go on."""
        left = sorted(path.name for path in pathlib.Path(self.project_dir).glob("trial_*"))
        if left:
            raise ValueError(
                f"The folder {self.project_dir!r} holds {len(left)} trials, and nothing that tells "
                "how the search stood, so that it cannot go on. Give another `project_name`, or "
                "overwrite=True to delete them."
            )
        if self._search_path.exists():
            print(f"No trial had begun in {self.project_dir}: the search starts anew.")


def _check_arguments(tuner_class, oracle, hypermodel, directory, kwargs):
    """Raises an error for what KerasTuner does not name."""
    if hypermodel is None and tuner_class.run_trial.__module__.startswith("keras_gates."):
        raise TypeError(
            "`hypermodel` must be a function of a keras_tuner.HyperParameters that returns a "
            "compiled model, or a keras_tuner.HyperModel. Received: hypermodel=None"
        )
    if not isinstance(directory, str | os.PathLike | None):
        raise ValueError(f"`directory` must be a path. Received: directory={directory!r}")
    if directory is not None and pathlib.Path(directory).is_file():
        raise ValueError(
            f"`directory` must be a folder. Received: directory={str(directory)!r}, which is a file"
        )
    if directory is not None:
        try:
            os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"`directory` must be a folder that can be made. Received: directory="
                f"{str(directory)!r}. {error.strerror}"
            ) from error
    known = constructor_arguments(tuner_class) | constructor_arguments(type(oracle))
    for name in set(kwargs) - known:
        raise TypeError(
            f"{tuner_class.__name__} takes no argument `{name}`{close_matches(name, known)}"
        )


def constructor_arguments(of):
    """Names of all arguments that the constructors of a class and its bases take."""
    own = [base.__init__ for base in of.__mro__ if "__init__" in vars(base)]
    names = {name for each in own for name in inspect.signature(each).parameters}
    return names - {"self", "args", "kwargs"}


def _fatal(seed, deaths):
    """As `_execute` for a training that has ended its process so many times."""
    reason = f"its process died {deaths} times in this training; is there too little memory?"
    execution = records.Execution(seed, records.RAISED, 0, reason)
    return execution, keras_tuner.errors.FailedTrialError(f"{reason} (seed {seed})")
