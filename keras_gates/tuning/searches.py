"""The searches: what proposes the trials that a `Tuner` runs."""

from typing import Any

from keras_gates.tuning import oracles, records
from keras_gates.tuning.oracles import HyperModel, Objective
from keras_gates.tuning.tuners import Tuner, constructor_arguments


class RandomSearch(Tuner):
    """Draws every choice by chance.

    Args:
        hypermodel: a function of a `keras_tuner.HyperParameters` that returns a compiled model, or
            a `keras_tuner.HyperModel`.
        objective: a name such as "val_accuracy", or a `keras_tuner.Objective`.
        max_trials: how many choices are tried at most.
        seed: of the search, and the first of the seeds of the trainings.
        **kwargs: further arguments of `Tuner` (`executions_per_trial`, `directory`,
            `project_name`, `overwrite`, ...) and of `keras_tuner.RandomSearch`.

    Example:

    >>> def build(hp):
    ...     activations = keras_gates.tuning.activation_space(hp, cell="gru")
    ...     model = keras.Sequential([keras.Input((None, 12)),
    ...                               keras_gates.GatedRNN(32, **activations),
    ...                               keras.layers.Dense(9, activation="softmax")])
    ...     model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ...     return model
    >>> tuner = keras_gates.tuning.RandomSearch(build, "val_accuracy", max_trials=20, seed=0,
    ...                                         executions_per_trial=2, directory="searches",
    ...                                         project_name="frames")
    >>> tuner.search(x, y, validation_split=0.2, epochs=10)
    >>> print(keras_gates.tuning.search_report(tuner))
    """

    oracle_class = oracles.RandomSearchOracle

    def __init__(
        self,
        hypermodel: HyperModel | None = None,
        objective: Objective = None,
        max_trials: int | None = 10,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"objective": objective, "max_trials": max_trials, "seed": seed}
        super().__init__(_oracle(self.oracle_class, given, kwargs), hypermodel, **kwargs)


class GridSearch(RandomSearch):
    """Tries all combinations, beginning with the defaults; see `RandomSearch`.

    `max_trials=None` stands for all.
    """

    oracle_class = oracles.GridSearchOracle

    def __init__(
        self,
        hypermodel: HyperModel | None = None,
        objective: Objective = None,
        max_trials: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(hypermodel, objective, max_trials, **kwargs)


class BayesianOptimization(RandomSearch):
    """Tries what a Gaussian process of the score holds for promising; see `RandomSearch`.

    Further arguments: `num_initial_points`, `alpha`, `beta`, as in
    `keras_tuner.BayesianOptimization`.
    """

    oracle_class = oracles.BayesianOptimizationOracle


class Hyperband(Tuner):
    """Begins with many short trainings and goes on with the best of them.

    Args:
        hypermodel, objective, seed, **kwargs: as in `RandomSearch`.
        max_epochs: how long the longest training is.
        factor: how many times fewer trials, each so many times longer, a round has than the one
            before.
        hyperband_iterations: how often the whole is repeated.

    Source: Li et al., "Hyperband: a novel bandit-based approach to hyperparameter optimization",
    2018.
    """

    def __init__(
        self,
        hypermodel: HyperModel | None = None,
        objective: Objective = None,
        max_epochs: int = 100,
        *,
        factor: float = 3,
        hyperband_iterations: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"objective": objective, "max_epochs": max_epochs, "factor": factor, "seed": seed}
        given["hyperband_iterations"] = hyperband_iterations
        super().__init__(_oracle(oracles.HyperbandOracle, given, kwargs), hypermodel, **kwargs)

    def search(self, *args, epochs=None, **kwargs):
        """As in `Tuner`. `epochs` is taken and not used: `max_epochs` says how long trials are."""
        super().search(*args, **kwargs)

    def _fit_arguments(self, trial, args, kwargs):
        values = trial.hyperparameters.values
        if "tuner/epochs" in values:
            epochs = {name: values[f"tuner/{name}"] for name in ("epochs", "initial_epoch")}
            kwargs = {**kwargs, **epochs}
        return args, kwargs

    def _from_the_start(self, trial):
        trial = super()._from_the_start(trial)
        values = trial.hyperparameters.values
        values.pop("tuner/trial_id", None)
        values.update({"tuner/epochs": self.oracle.max_epochs, "tuner/initial_epoch": 0})
        return trial

    def _build_hypermodel(self, hp):
        model = super()._build_hypermodel(hp)
        earlier = hp.values.get("tuner/trial_id")
        if earlier is not None and self._seed is not None:
            executions = records.read_executions(self.get_trial_dir(earlier))
            if any(e.outcome != records.FINISHED for e in executions):
                raise ValueError(f"Trial {earlier}, which this one goes on from, did not finish.")
            self._restore(model, earlier, self._weights_path(earlier, self._seed))
        return model


def _oracle(oracle_class, given, kwargs):
    """An oracle of what is given and what it takes of `kwargs`, out of which that is taken."""
    taken = constructor_arguments(oracle_class) & kwargs.keys()
    return oracle_class(**given, **{name: kwargs.pop(name) for name in taken})
