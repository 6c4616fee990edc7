"""KerasTuner's tuners, with trials that are repeated, may fail, and are kept on record."""

import collections
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
from keras import tree

from keras_gates import diagnostics
from keras_gates._keras.tuner import maybe_distribute
from keras_gates.tuning import chief, launch, oracles, records, roles, settings
from keras_gates.tuning.errors import described
from keras_gates.tuning.oracles import HyperModel
from keras_gates.tuning.progress import Progress
from keras_gates.tuning.watch import Watch
from keras_gates.validation import close_matches, positive_integer

CURE = "Give another `project_name`, or overwrite=True to delete what is there."


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

    Use one of `RandomSearch`, `GridSearch`, `BayesianOptimization`, `Hyperband`; or this with an
    oracle such as `OptunaOracle`.

    Args:
        oracle: one of the oracles of `keras_gates.tuning`.
        hypermodel: a function of a `keras_tuner.HyperParameters` that returns a compiled model, or
            a `keras_tuner.HyperModel`.
        executions_per_trial: how many seeds each trial is trained with.
        directory, project_name: where the search is kept. On several machines, a folder that all
            of them see.
        overwrite: whether to delete a search that is there. Refused on several machines, where a
            chief that is started again would delete what is done.
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
        if overwrite and roles.role() != roles.ALONE:
            raise ValueError(
                "`overwrite=True` cannot be given in a search on several machines: a chief that "
                "is started again would delete the finished trials. Delete the folder before the "
                "search begins."
            )
        _check_arguments(type(self), oracle, hypermodel, directory, kwargs)
        executions = positive_integer("executions_per_trial", executions_per_trial)
        self._seeds = [oracle.first_seed + k for k in range(executions)]
        self._objective, self._resumed = oracle.objective, False
        self._oracle_name = type(oracle).__name__
        self._prunes = getattr(oracle, "prunes", False)
        self._seed = None  # of the training under way
        self._launched = launch.end_with_launcher()
        oracle._display = self._progress = Progress(oracle)
        super().__init__(
            oracle=oracle,
            hypermodel=hypermodel,
            executions_per_trial=executions,
            directory=directory,
            project_name=project_name,
            overwrite=overwrite,
            **kwargs,
        )
        if self._is_worker():
            # What KerasTuner sends over the network is loaded where it is needed alone.
            from keras_gates.tuning.client import Client

            self.oracle = Client(oracle)
        elif not self._resumed:
            self._refuse_leftovers()
            records.write_json(self._search_path, self._settings())
            self.save()

    # ------------------------------------------------------------------ the search

    def search(self, *args, verbose=1, **kwargs):
        """Runs trials until the search is over.

        On several machines the chief hands out the trials here and the workers run them. A worker
        does not come back from it: its process ends when the search does, so that what follows in
        the script, such as a report, happens once, in the chief.

        Args:
            *args, **kwargs: what `fit` is called with: data, `epochs`, `callbacks`, ...
            verbose: 0 for silence, 1 for a line on the search, 2 for the lines of `fit` as well.

        Raises:
            SystemExit: in a worker, always.
            ValueError: the trials that there are had other data, epochs or batches.
        """
        if "epochs" in kwargs:
            positive_integer("epochs", kwargs["epochs"])
        self._refuse_other_training(args, kwargs)
        self._progress.verbose = self._verbose = verbose
        try:
            if roles.role() == roles.CHIEF:
                chief.serve(self.oracle)
            else:
                super().search(*args, **kwargs)
        except KeyboardInterrupt:
            self._progress.close()
            if not self._is_worker():
                print(f"Interrupted. The same script goes on with the search in {self.project_dir}")
            raise
        finally:
            self._progress.close()
        if self._is_worker():
            raise SystemExit(0)

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
        for seed in self._seeds[len(executions) :]:
            if executions and executions[0].outcome == records.PRUNED:
                break
            deaths = records.begin(folder, seed, self._launched) if self._launched else 0
            if deaths >= launch.LIVES - 1:
                execution, error = _fatal(seed, deaths)
            else:
                execution, error = self._execute(trial, seed, args, kwargs)
            executions.append(execution)
            records.write_executions(folder, executions)
            records.end(folder)
            if self._launched:
                self._launched.touch()
            if error is not None:
                raise error
        for execution in executions:
            if execution.outcome != records.FINISHED:
                raise keras_tuner.errors.FailedTrialError(
                    f"{execution.outcome}: {execution.reason} (seed {execution.seed})"
                )
        return executions

    def _execute(self, trial, seed, args, kwargs):
        """One training: an `Execution`, and the error that it raised or None."""
        index = self._seeds.index(seed)
        watch = Watch(
            self._objective,
            self._weights_path(trial.trial_id, seed),
            self._pruner(trial) if index == 0 else None,
            required=type(self.hypermodel).fit is keras_tuner.HyperModel.fit,
        )
        callbacks = self._deepcopy_callbacks(kwargs.get("callbacks") or [])
        self._configure_tensorboard_dir(callbacks, trial, index)
        kwargs = {"verbose": 2 if self._verbose > 1 else 0, **kwargs}
        shown = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: self._progress.on_epoch_end(
                index + 1, len(self._seeds), epoch + 1
            )
        )
        kwargs["callbacks"] = [*callbacks, TunerCallback(self, trial), shown, watch]
        began, error, score, trace = time.perf_counter(), None, None, None
        keras.utils.set_random_seed(seed)
        self._seed = seed
        try:
            results = self._build_and_fit_model(trial, *args, **kwargs)
            score = self._score(results, watch)
            outcome, reason = _ended(watch, score)
        except keras_tuner.errors.FatalError:
            raise
        except Exception as raised:
            outcome, reason = _ended(watch, score)  # it may have raised because it had diverged
            if outcome == records.FINISHED:
                error, outcome = raised, records.RAISED
                reason, trace = described(raised), traceback.format_exc()
        finally:
            self._seed = None
        finished = outcome == records.FINISHED
        return records.Execution(
            seed=seed,
            outcome=outcome,
            epoch=watch.epoch,
            reason=reason,
            score=score if finished else None,
            best_epoch=watch.best_epoch if finished else None,
            history=watch.history,
            seconds=time.perf_counter() - began,
            parameters=None if watch.model is None else watch.model.count_params(),
            sparsity=_sparsity(watch.model, args, kwargs) if finished else None,
            traceback=trace,
        ), error

    def _score(self, results, watch):
        """The objective of one training, from what `HyperModel.fit` returned."""
        if isinstance(results, keras.callbacks.History):
            if watch.best is not None:
                return self._objective.get_value(watch.best)
            if watch.reason is None:
                raise keras_tuner.errors.FatalValueError(
                    "`HyperModel.fit` must hand the `callbacks` that it is given to `model.fit`, "
                    "which writes the weights of the best epoch. It did not, or no epoch was run."
                )
            return None
        if isinstance(results, dict):
            return float(self._objective.get_value(results))
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
        metrics[self._objective.name] = float(np.mean([e.score for e in executions]))
        epochs = [e.best_epoch for e in executions if e.best_epoch is not None]
        step = round(np.mean(epochs)) if epochs else 0
        self.oracle.update_trial(trial.trial_id, metrics, step=step)

    def _pruner(self, trial):
        """What asks the oracle after each epoch whether the trial is worth going on with."""
        if not self._prunes:
            return None

        def report(epoch, logs):
            if not self._objective.has_value(logs):
                return False
            value = {oracles.INTERMEDIATE: float(self._objective.get_value(logs))}
            return self.oracle.update_trial(trial.trial_id, value, step=epoch).status == "STOPPED"

        return report

    # ------------------------------------------------------------------ what it found

    def get_best_models(self, num_models=1):
        """The models of the best trials, each with the weights of its best training and epoch.

        Raises:
            ValueError: no trial has finished.
        """
        self._refuse_no_answer()
        return super().get_best_models(num_models)

    def get_best_hyperparameters(self, num_trials=1):
        """The hyperparameters of the best trials.

        Raises:
            ValueError: no trial has finished.
        """
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
        best = executions[0]
        for other in executions[1:]:
            if other.score is not None and _better(self._objective, other.score, best.score):
                best = other
        return self._weights_path(trial_id, best.seed)

    def load_model(self, trial):
        """The model of a trial as it was at the best epoch of its best training."""
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
            "oracle": self._oracle_name,
            "objective": self._objective.name,
            "direction": self._objective.direction,
            "seeds": self._seeds,
            settings.SPACE: self.oracle.hyperparameters.get_config()["space"],
        }

    def _get_tuner_fname(self):
        # A search that was begun alone goes on with a chief, and the other way round.
        name = self.tuner_id if self._is_worker() else roles.ALONE_ID
        return str(pathlib.Path(self.project_dir) / f"{name}.json")

    def save(self):
        if not self._is_worker():
            self.oracle.save()
        records.write_json(self._get_tuner_fname(), self.get_state())

    def reload(self):
        self._populate_initial_space()
        if not self._is_worker():
            self._refuse_another_search()
        super().reload()
        self._resumed = True
        if not self._is_worker():
            running = len(self.oracle.ongoing_trials) + len(self.oracle._retry_queue)
            print(
                f"The search in {self.project_dir} goes on: {len(self.oracle.end_order)} trials "
                f"had ended, {running} had not."
            )

    def _refuse_another_search(self):
        where = f"The folder {self.project_dir!r} holds another search"
        if not self._search_path.exists():
            raise ValueError(f"{where}, by a tuner that is not of keras_gates.tuning. {CURE}")
        there = json.loads(self._search_path.read_text())
        difference = settings.difference(there, self._settings())
        if difference:
            raise ValueError(f"{where}: {difference}. {CURE}")

    def _refuse_other_training(self, args, kwargs):
        """An error where the trials of the search were trained otherwise."""
        if not self._search_path.exists():
            return  # of a worker that came before its chief
        search, here = json.loads(self._search_path.read_text()), settings.training(args, kwargs)
        if settings.TRAINING in search:
            difference = settings.difference(search[settings.TRAINING], here)
            if difference:
                raise ValueError(
                    f"The trials of the search in {self.project_dir!r} were trained otherwise, so "
                    f"that others do not compare with them: {difference}. {CURE}"
                )
        elif not self._is_worker():
            records.write_json(self._search_path, {**search, settings.TRAINING: here})

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


class TunerCallback(keras.callbacks.Callback):
    """Calls the hooks of a tuner, for those who override them."""

    def __init__(self, tuner, trial):
        super().__init__()
        self.tuner, self.trial = tuner, trial

    def on_epoch_begin(self, epoch, logs=None):
        self.tuner.on_epoch_begin(self.trial, self.model, epoch, logs=logs)

    def on_batch_begin(self, batch, logs=None):
        self.tuner.on_batch_begin(self.trial, self.model, batch, logs)

    def on_batch_end(self, batch, logs=None):
        self.tuner.on_batch_end(self.trial, self.model, batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.tuner.on_epoch_end(self.trial, self.model, epoch, logs=logs)


def _check_arguments(tuner_class, oracle, hypermodel, directory, kwargs):
    """Raises an error for what KerasTuner does not name."""
    if hypermodel is None and tuner_class.run_trial.__module__.startswith("keras_gates."):
        raise TypeError(
            "`hypermodel` must be a function of a keras_tuner.HyperParameters that returns a "
            "compiled model, or a keras_tuner.HyperModel. Received: hypermodel=None"
        )
    if directory is not None and pathlib.Path(directory).is_file():
        raise ValueError(
            f"`directory` must be a folder. Received: directory={str(directory)!r}, which is a file"
        )
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


def _ended(watch, score):
    """How a training ended, and why where it did not finish."""
    if watch.reason is not None:
        return records.DIVERGED, watch.reason
    if watch.pruned:
        return records.PRUNED, f"no better than other trials after epoch {watch.epoch}"
    if score is not None and not math.isfinite(score):
        return records.DIVERGED, f"the score was {score}"
    return records.FINISHED, None


def _fatal(seed, deaths):
    """As `_execute` for a training that has ended its process so many times."""
    reason = f"its process died {deaths} times in this training; is there too little memory?"
    execution = records.Execution(seed, records.RAISED, 0, reason)
    return execution, keras_tuner.errors.FailedTrialError(f"{reason} (seed {seed})")


def _better(objective, score, than):
    return score > than if objective.direction == "max" else score < than


def _sparsity(model, args, kwargs, samples=32):
    """The share of zeros in the hidden states on the first samples of the data, or None."""
    x = kwargs.get("x", args[0] if args else None)
    try:
        x = tree.map_structure(lambda array: np.asarray(array[:samples]), x)
        layers = diagnostics.diagnose(model, x, lyapunov=False).layers
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return None  # no arrays, or no recurrent layers
    hidden = [layer.states["hidden"].sparsity for layer in layers if "hidden" in layer.states]
    return float(np.mean(hidden)) if hidden else None
