"""Optuna proposes the trials, ends those that are not worth going on with, and keeps the study.

Each trial of KerasTuner has a trial in an Optuna study beside it. What KerasTuner has on disk is
what counts; the study is brought to the same when a search goes on.
"""

import copy
import uuid
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.hyperparameters import Boolean, Choice, Fixed, Int

from keras_gates.tuning import oracles, roles
from keras_gates.tuning.oracles import Objective

# How often the sampler may come back to what was tried before a choice is drawn by chance.
DRAWS = 10
SEARCH, TRIAL = "search", "trial_id"  # user attributes of a trial in a study


class OptunaOracle(oracles.RobustOracle, keras_tuner.Oracle):
    """Lets an Optuna sampler choose, and an Optuna pruner end what does worse than others did.

    No choice is tried twice. A trial that failed is reported to Optuna as pruned, which its default
    sampler ranks below every completed trial. It passes over what is reported as failed: it would
    know nothing against that part of the space, and go there ever more often. The pruner hears the
    objective of each epoch, counted from 1, of the first training of a trial. A trial that it ends
    has no score.

    A hyperparameter is an Optuna parameter of the same name, with its conditions behind the name if
    it is not the first so called. Where Optuna has no such scale, the parameter is the index of the
    value (`step` of a Float or on a logarithmic scale) or the value mirrored (`reverse_log`).

    Args:
        objective: a name such as "val_accuracy", or a `keras_tuner.Objective`.
        max_trials: how many choices are tried at most.
        sampler: one of `optuna.samplers`. Default: a `TPESampler`, which a search that goes on
            finds in the state in which it was. One of your own begins anew.
        pruner: one of `optuna.pruners`. Default: `MedianPruner(n_startup_trials=5,
            n_warmup_steps=3)`. `NopPruner()` for none.
        storage: where the study is kept: the URL of a relational database, as in
            "sqlite:///study.db", or one of `optuna.storages`. Default: in memory, made again from
            KerasTuner's folder when a search goes on.
        study_name: the name of the study in `storage`. One that is there is continued: the sampler
            learns from all trials in it, whatever search they come from.
        seed: of the search, and the first of the seeds of the trainings.
        **kwargs: further arguments of `keras_tuner.Oracle`.

    Attributes:
        study: the `optuna.Study`; None in a worker of a search on several machines.
        prunes: whether there is a pruner.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: no sampler or pruner of Optuna; `storage` without `study_name`, or the reverse;
            a study with another direction, or, when trials are drawn, with other hyperparameters.

    Example:

    >>> def build(hp):
    ...     activations = keras_gates.tuning.activation_space(hp, cell="gru")
    ...     model = keras.Sequential([keras.Input((None, 12)),
    ...                               keras_gates.GatedRNN(32, **activations),
    ...                               keras.layers.Dense(9, activation="softmax")])
    ...     model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ...     return model
    >>> tuner = keras_gates.tuning.Tuner(
    ...     keras_gates.tuning.OptunaOracle("val_accuracy", 50, seed=0), build,
    ...     executions_per_trial=2, directory="searches", project_name="frames")
    >>> tuner.search(x, y, validation_split=0.2, epochs=10)
    >>> print(keras_gates.tuning.search_report(tuner))

    Sources: Akiba et al., "Optuna: a next-generation hyperparameter optimization framework", 2019;
    Bergstra et al., "Algorithms for hyper-parameter optimization", 2011 (the sampler).
    """

    def __init__(
        self,
        objective: Objective = None,
        max_trials: int = 10,
        *,
        sampler: Any = None,
        pruner: Any = None,
        storage: Any = None,
        study_name: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        optuna = _optuna()
        super().__init__(objective=objective, max_trials=max_trials, seed=seed, **kwargs)
        _refuse_other("sampler", sampler, optuna.samplers.BaseSampler)
        _refuse_other("pruner", pruner, optuna.pruners.BasePruner)
        if (storage is None) != (study_name is None):
            raise ValueError(
                "`storage` and `study_name` must be given together: where the study is kept, and "
                f"which one it is there. Received: storage={storage!r}, study_name={study_name!r}"
            )
        if pruner is None:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
        self.prunes = not isinstance(pruner, optuna.pruners.NopPruner)
        self._own_sampler = sampler is not None
        self._search = uuid.uuid4().hex  # by which its trials are known in a study
        self._asked: dict[str, Any] = {}  # trial_id -> optuna.Trial, of those that have not ended
        self.study, self._exhausted = None, False
        if roles.role() != roles.WORKER:
            direction = f"{self.objective.direction}imize"
            # Some pruners make use of the name.
            self.study = optuna.create_study(
                storage=storage,
                sampler=sampler,
                pruner=pruner,
                study_name=study_name or "search",
                direction=direction,
                load_if_exists=True,
            )
            self._refuse_other_direction(direction)
            # What samplers that come to an end call; Optuna's own wants its own loop.
            self.study.stop = lambda: setattr(self, "_exhausted", True)

    # ------------------------------------------------------------------ trials

    def populate_space(self, trial_id):
        optuna = _optuna()
        if self.begins() and not self._own_sampler:
            params, _ = self._params(self.defaults())
            self.study.enqueue_trial(params)
        for _ in range(DRAWS):
            if self._exhausted:
                return {"status": "STOPPED"}
            if not self._own_sampler:
                # A new one each time, so that there is no state to be kept but a count.
                seeds = np.random.SeedSequence([self.seed, self._seed_state]).generate_state(1)
                self.study.sampler = optuna.samplers.TPESampler(seed=int(seeds[0]))
                self._seed_state += 1
            asked = self.study.ask()
            asked.set_user_attr(SEARCH, self._search)
            asked.set_user_attr(TRIAL, trial_id)
            values = self._values(lambda parameter, trial=asked: self._suggested(parameter, trial))
            if not self._duplicate(values):
                break
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            values = self._random_values()
            if values is None:
                return {"status": "STOPPED"}
            asked = self._given(trial_id, values)
        self._asked[trial_id] = asked
        return {"status": "RUNNING", "values": values}

    @keras_tuner.synchronized
    def update_trial(self, trial_id, metrics, step=0):
        """Takes the result of a trial, or the objective of an epoch.

        Returns:
            The trial. After an epoch its status is "STOPPED" if it is to be ended.
        """
        trial = self.trials[trial_id]
        if oracles.INTERMEDIATE in metrics:
            return self._after_epoch(trial, metrics[oracles.INTERMEDIATE], step)
        reported = _reported(trial)
        super().update_trial(trial_id, metrics, step=step)
        for epoch, value in reported.items():
            trial.metrics.update(oracles.INTERMEDIATE, value, step=epoch)
        self._save_trial(trial)
        return trial

    def _after_epoch(self, trial, value, epoch):
        answer = copy.copy(trial)
        if trial.trial_id not in self._asked:  # it has ended
            return answer
        if epoch <= max(_reported(trial), default=-1):  # the training began again
            del trial.metrics.metrics[oracles.INTERMEDIATE]
            failed = _optuna().trial.TrialState.FAIL
            self.study.tell(self._asked[trial.trial_id], state=failed)
            self._asked[trial.trial_id] = self._given(trial.trial_id, trial.hyperparameters.values)
        trial.metrics.update(oracles.INTERMEDIATE, value, step=epoch)
        self._save_trial(trial)
        asked = self._asked[trial.trial_id]
        asked.report(value, epoch)
        if asked.should_prune():
            answer.status = "STOPPED"
        return answer

    @keras_tuner.synchronized
    def end_trial(self, trial):
        super().end_trial(trial)
        if trial.trial_id in self.end_order:
            self._tell(self.trials[trial.trial_id])

    def _tell(self, trial):
        asked = self._asked.pop(trial.trial_id, None)
        if asked is None:
            return  # it was reported
        if trial.status == oracles.COMPLETED:
            self.study.tell(asked, trial.score)
        else:
            self.study.tell(asked, state=_optuna().trial.TrialState.PRUNED)

    # ------------------------------------------------------------------ hyperparameters

    def _values(self, value_of):
        """The active hyperparameters, each as `value_of(parameter)` says; None: its default."""
        drawn, names = keras_tuner.HyperParameters(), set()
        for hp in self.hyperparameters.space:
            conditions = " and ".join(f"{c.name} in {c.values}" for c in hp.conditions)
            name = f"{hp.name} ({conditions})" if hp.name in names else hp.name
            names.add(hp.name)
            drawn.merge([hp])
            if drawn.is_active(hp) and not isinstance(hp, Fixed):
                value = value_of(_Parameter(name, hp))
                drawn.values[hp.name] = hp.default if value is None else value
        return drawn.values

    def _suggested(self, parameter, trial):
        try:
            return parameter.suggested(trial)
        except ValueError as error:
            raise ValueError(
                f"The hyperparameter {parameter.name!r} cannot be drawn in the study "
                f"{self.study.study_name!r}: {error} If that has trials of another search "
                "space in it, give another `study_name`."
            ) from error

    def _given(self, trial_id, values):
        """A trial in the study with these values."""
        optuna = _optuna()
        params, distributions = self._params(values)
        running = optuna.trial.TrialState.RUNNING
        self.study.add_trial(
            optuna.trial.create_trial(
                state=running,
                params=params,
                distributions=distributions,
                user_attrs={SEARCH: self._search, TRIAL: trial_id},
                system_attrs={"fixed_params": params},  # as in a trial that was enqueued
            )
        )
        added = [
            trial
            for trial in self.study.get_trials(states=(running,))
            if trial.user_attrs == {SEARCH: self._search, TRIAL: trial_id}
        ]
        return optuna.trial.Trial(self.study, added[-1]._trial_id)

    def _params(self, values):
        """What Optuna calls params, and their distributions, of hyperparameters with these values.

        Those that cannot have theirs are left out.
        """
        params, distributions = {}, {}

        def note(parameter):
            value = values.get(parameter.hp.name)
            if parameter.can_be(value):
                params[parameter.name] = parameter.to_optuna(value)
                distributions[parameter.name] = parameter.distribution
            return value

        self._values(note)
        return params, distributions

    # ------------------------------------------------------------------ on disk

    def get_state(self):
        return {**super().get_state(), "search": self._search}

    def set_state(self, state):
        super().set_state(state)
        self._search = state["search"]
        self._restore()

    def _restore(self):
        """Brings the study to what the trials on disk say, wherever the process was killed."""
        states, told = _optuna().trial.TrialState, set()
        for trial in self.study.get_trials():
            if trial.user_attrs.get(SEARCH) != self._search:
                continue
            if trial.state == states.RUNNING:
                self.study.tell(trial.number, state=states.FAIL)
            elif trial.state in (states.COMPLETE, states.PRUNED):
                told.add(trial.user_attrs[TRIAL])
        for trial_id in self.start_order:
            if trial_id in told:
                continue
            trial = self.trials[trial_id]
            asked = self._asked[trial_id] = self._given(trial_id, trial.hyperparameters.values)
            for epoch, value in _reported(trial).items():
                asked.report(value, epoch)
            if trial_id in self.end_order:
                self._tell(trial)

    def _refuse_other_direction(self, direction):
        there = [found.name.lower() for found in self.study.directions]
        if there != [direction]:
            raise ValueError(
                f"The study {self.study.study_name!r} is there to {' and '.join(there)}, and this "
                f"search is to {direction} {self.objective.name!r}. Give another `study_name`."
            )


class _Parameter:
    """A hyperparameter as Optuna sees it."""

    def __init__(self, name, hp):
        self.name, self.hp = name, hp
        self._choices = None  # where the parameter is an index
        distributions = _optuna().distributions
        number = int if isinstance(hp, Int) else float
        if isinstance(hp, (Choice, Boolean)):
            self.distribution = distributions.CategoricalDistribution(hp.values)
        elif isinstance(hp, Int) and hp.sampling == "linear":
            # Optuna warns of a range that is no multiple of the step.
            high = hp.max_value - (hp.max_value - hp.min_value) % hp.step
            self.distribution = distributions.IntDistribution(hp.min_value, high, step=hp.step)
        elif hp.step is not None:
            self._choices = [number(value) for value in hp.values]
            self.distribution = distributions.IntDistribution(0, len(self._choices) - 1)
        else:
            kind = distributions.FloatDistribution
            if number is int:
                kind = distributions.IntDistribution
            self.distribution = kind(hp.min_value, hp.max_value, log=hp.sampling != "linear")

    def suggested(self, trial):
        """The value that an Optuna trial has for it."""
        found, options = self.distribution, {}
        if isinstance(self.hp, (Choice, Boolean)):
            return trial.suggest_categorical(self.name, found.choices)
        suggest = trial.suggest_float
        if isinstance(found, _optuna().distributions.IntDistribution):
            suggest, options = trial.suggest_int, {"step": found.step}
        param = suggest(self.name, found.low, found.high, log=found.log, **options)
        return self._choices[param] if self._choices else self._mirrored(param)

    def can_be(self, value):
        """Whether it has this value; the default of a numerical one may be out of its range."""
        if isinstance(self.hp, (Choice, Boolean)):
            return value in self.distribution.choices
        if self._choices:
            return value in self._choices
        return value is not None and self.distribution.low <= value <= self.distribution.high

    def to_optuna(self, value):
        if self._choices:
            return self._choices.index(value)
        if isinstance(self.hp, (Choice, Boolean)):
            return value
        # Mirrored, a bound may be past the other one by rounding.
        return min(max(self._mirrored(value), self.distribution.low), self.distribution.high)

    def _mirrored(self, value):
        """KerasTuner's "reverse_log" is fine-grained near the upper bound."""
        if getattr(self.hp, "sampling", None) != "reverse_log":
            return value
        return self.hp.min_value + self.hp.max_value - value


def _reported(trial):
    """The objective after each epoch that was reported."""
    if not trial.metrics.exists(oracles.INTERMEDIATE):
        return {}
    history = trial.metrics.get_history(oracles.INTERMEDIATE)
    return {int(seen.step): seen.mean() for seen in history}


def _refuse_other(argument, value, base):
    if value is not None and not isinstance(value, base):
        raise ValueError(
            f"`{argument}` must be one of optuna.{argument}s, or None for the default. "
            f"Received: {argument}={value!r}"
        )


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise ImportError('OptunaOracle needs Optuna: pip install "keras_gates[optuna]"') from error
    return optuna
