"""Optuna proposes the trials, ends those that are not worth going on with, and keeps the study.

Each trial of KerasTuner has a trial in an Optuna study beside it. What KerasTuner has on disk is
what counts; the study is brought to the same when a search goes on.
"""

import uuid
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.hyperparameters import Boolean, Choice, Fixed, Int

from keras_gates.tuning import oracles
from keras_gates.tuning.oracles import Objective
from keras_gates.validation import invalid, text_or_none

# How often the sampler may come back to what was tried before a choice is drawn by chance.
_DRAWS = 10
TRIAL = "trial"  # user attribute of a trial in a study: the search, and KerasTuner's id


class OptunaOracle(oracles.RobustOracle):
    """Lets an Optuna sampler choose, and an Optuna pruner end what does worse than others did.

    No choice is tried twice. A trial that failed is reported to Optuna as pruned, which its default
    sampler ranks below every completed trial. It passes over what is reported as failed: it would
    know nothing against that part of the space, and go there ever more often. The pruner hears the
    objective of each epoch, counted from 1, of the first training of a trial. A trial that it ends
    has no score.

    A hyperparameter is an Optuna parameter of the same name, with its conditions behind the name if
    it is not the first so called. Where Optuna has no such scale (`reverse_log`, a `step` on a
    logarithmic scale or of a Float), the parameter is how far along it the value is, from 0 to 1.

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
        study: the `optuna.Study`.

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
        text_or_none("study_name", study_name)
        if (storage is None) != (study_name is None):
            raise ValueError(
                "`storage` and `study_name` must be given together: where the study is kept, and "
                f"which one it is there. Received: storage={storage!r}, study_name={study_name!r}"
            )
        if pruner is None:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
        self._own_sampler = sampler is not None
        self._search = uuid.uuid4().hex  # by which its trials are known in a study
        self._exhausted = False
        direction = f"{self.objective.direction}imize"
        try:
            self.study = optuna.create_study(
                storage=storage,
                sampler=sampler,
                pruner=pruner,
                study_name=study_name or "search",  # some pruners make use of the name
                direction=direction,
                load_if_exists=True,
            )
        except Exception as error:  # of the storage, of any kind
            if storage is None or isinstance(error, ImportError):
                raise
            expected = "the URL of a relational database to be opened, or one of optuna.storages"
            raise invalid("storage", expected, storage, f". {error}") from error
        if (there := self.study.direction.name.lower()) != direction:
            raise ValueError(
                f"The study {study_name!r} is there to {there}, and this search is to {direction} "
                f"{self.objective.name!r}. Give another `study_name`."
            )
        # What samplers that come to an end call; Optuna's own wants its own loop.
        self.study.stop = lambda: setattr(self, "_exhausted", True)

    # ------------------------------------------------------------------ trials

    def populate_space(self, trial_id):
        optuna = _optuna()
        if not (self.start_order or self._own_sampler):
            self.study.enqueue_trial(self._params(self.defaults())[0])
        for _ in range(_DRAWS):
            if self._exhausted:
                return {"status": "STOPPED"}
            if not self._own_sampler:
                # A new one each time, so that there is no state to be kept but a count.
                seeds = np.random.SeedSequence([self.seed, self._seed_state]).generate_state(1)
                self.study.sampler = optuna.samplers.TPESampler(seed=int(seeds[0]))
                self._seed_state += 1
            asked = self.study.ask()
            asked.set_user_attr(TRIAL, self._name(trial_id))
            drawn = keras_tuner.HyperParameters()
            for parameter in self._parameters(drawn):
                drawn.values[parameter.hp.name] = parameter.suggested(asked)
            if not self._duplicate(drawn.values):
                return {"status": "RUNNING", "values": drawn.values}
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        values = self._random_values()
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}

    def is_pruned(self, trial_id, epoch, value):
        with self.up_to_date():
            trial = self.trials[trial_id]
            trial.metrics.update(oracles.INTERMEDIATE, value, step=epoch)
            self._save_trial(trial)
            asked = self._bring_up_to_date(trial_id)
            return asked is not None and asked.should_prune()

    def end_trial(self, trial):
        with self.up_to_date():
            super().end_trial(trial)
            self._bring_up_to_date(trial.trial_id)

    def _name(self, trial_id):
        return f"{self._search} {trial_id}"

    def _bring_up_to_date(self, trial_id):
        """Has the study know of a trial what KerasTuner knows; returns Optuna's, if it is running.

        A training that began again reports what it has reported before."""
        optuna, trial, name = _optuna(), self.trials[trial_id], self._name(trial_id)
        states = optuna.trial.TrialState

        def known():
            there = self.study.get_trials(states=(states.RUNNING, states.COMPLETE, states.PRUNED))
            return [found for found in there if found.user_attrs.get(TRIAL) == name]

        if not known():
            params, distributions = self._params(trial.hyperparameters.values)
            added = {"params": params, "distributions": distributions, "user_attrs": {TRIAL: name}}
            self.study.add_trial(optuna.trial.create_trial(state=states.RUNNING, **added))
        (found,) = known()
        if found.state != states.RUNNING:
            return None
        asked = optuna.trial.Trial(self.study, found._trial_id)
        history = trial.metrics.metrics.get(oracles.INTERMEDIATE)
        for seen in history.get_history() if history else []:
            if seen.step not in found.intermediate_values:
                asked.report(seen.mean(), int(seen.step))
        if trial_id not in self.end_order:
            return asked
        completed = trial.status == oracles.COMPLETED
        told = {"values": trial.score} if completed else {"state": states.PRUNED}
        self.study.tell(asked, **told)
        return None

    # ------------------------------------------------------------------ hyperparameters

    def _parameters(self, drawn):
        """The active parameters, each as soon as `drawn` has the values of those before it."""
        names = set()
        for hp in self.hyperparameters.space:
            conditions = " and ".join(f"{c.name} in {c.values}" for c in hp.conditions)
            name = f"{hp.name} ({conditions})" if hp.name in names else hp.name
            names.add(hp.name)
            drawn.merge([hp])  # with its default
            if drawn.is_active(hp) and not isinstance(hp, Fixed):
                yield _Parameter(name, hp)

    def _params(self, values):
        """What Optuna calls params, and their distributions, of hyperparameters with these values.

        Those that cannot have theirs are left out.
        """
        params, distributions, drawn = {}, {}, keras_tuner.HyperParameters()
        for parameter in self._parameters(drawn):
            value = values.get(parameter.hp.name)
            if value is not None:
                drawn.values[parameter.hp.name] = value
            if parameter.can_be(value):
                params[parameter.name] = parameter.to_optuna(value)
                distributions[parameter.name] = parameter.distribution
        return params, distributions

    # ------------------------------------------------------------------ on disk

    def get_state(self):
        return {**super().get_state(), "search": self._search}

    def reload(self):
        super().reload()
        for trial_id in self.start_order:
            self._bring_up_to_date(trial_id)

    def set_state(self, state):
        super().set_state(state)
        self._search = state["search"]
        states, begun = _optuna().trial.TrialState, set(map(self._name, self.start_order))
        for found in self.study.get_trials(states=(states.RUNNING,)):
            name = found.user_attrs.get(TRIAL, "")
            if name.startswith(self._search) and name not in begun:
                self.study.tell(found.number, state=states.FAIL)  # it was never handed out


class _Parameter:
    """A hyperparameter as Optuna sees it."""

    def __init__(self, name, hp):
        self.name, self.hp = name, hp
        distributions, sampling = _optuna().distributions, getattr(hp, "sampling", None)
        self.as_it_is = True
        if isinstance(hp, (Choice, Boolean)):
            self.distribution = distributions.CategoricalDistribution(hp.values)
        elif isinstance(hp, Int) and sampling == "linear":
            # Optuna warns of a range that is no multiple of the step.
            high = hp.max_value - (hp.max_value - hp.min_value) % hp.step
            self.distribution = distributions.IntDistribution(hp.min_value, high, step=hp.step)
        elif hp.step is None and sampling != "reverse_log":
            integer = isinstance(hp, Int)
            kind = distributions.IntDistribution if integer else distributions.FloatDistribution
            self.distribution = kind(hp.min_value, hp.max_value, log=sampling == "log")
        else:
            self.as_it_is = False
            self.distribution = distributions.FloatDistribution(0, 1)

    def suggested(self, trial):
        """The value that an Optuna trial has for it."""
        its, kinds = self.distribution, _optuna().distributions
        integer = isinstance(its, kinds.IntDistribution)
        suggest = trial.suggest_int if integer else trial.suggest_float
        try:
            if isinstance(its, kinds.CategoricalDistribution):
                return trial.suggest_categorical(self.name, its.choices)
            value = suggest(self.name, its.low, its.high, step=its.step, log=its.log)
        except ValueError as error:
            raise ValueError(
                f"The hyperparameter {self.name!r} cannot be drawn in the study "
                f"{trial.study.study_name!r}: {error} If that has trials of another search space "
                "in it, give another `study_name`."
            ) from error
        return value if self.as_it_is else self.hp.prob_to_value(value)

    def can_be(self, value):
        """Whether it has this value; the default of a numerical one may be out of its range."""
        if isinstance(self.hp, (Choice, Boolean)):
            return value in self.distribution.choices
        low, high = self.distribution.low, self.distribution.high
        return value is not None and low <= self.to_optuna(value) <= high

    def to_optuna(self, value):
        return value if self.as_it_is else self.hp.value_to_prob(value)


def _refuse_other(argument, value, base):
    if value is not None and not isinstance(value, base):
        raise invalid(argument, f"one of optuna.{argument}s, or None for the default", value)


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise ImportError('OptunaOracle needs Optuna: pip install "keras_gates[optuna]"') from error
    return optuna
