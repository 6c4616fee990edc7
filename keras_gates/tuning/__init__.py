"""Search over activations with KerasTuner that survives divergence, on one or several machines."""

from keras_gates.tuning.hypermodel import GatedRNNHyperModel
from keras_gates.tuning.optuna import OptunaOracle
from keras_gates.tuning.oracles import (
    BayesianOptimizationOracle,
    GridSearchOracle,
    HyperbandOracle,
    RandomSearchOracle,
)
from keras_gates.tuning.report import SearchReport, search_report
from keras_gates.tuning.report.confirmation import Confirmation
from keras_gates.tuning.report.plots import plot_learning_curves, plot_parallel, plot_scores
from keras_gates.tuning.searches import (
    BayesianOptimization,
    GridSearch,
    Hyperband,
    RandomSearch,
)
from keras_gates.tuning.space import activation_space
from keras_gates.tuning.tuners import Tuner

__all__ = [
    "BayesianOptimization",
    "BayesianOptimizationOracle",
    "Confirmation",
    "GatedRNNHyperModel",
    "GridSearch",
    "GridSearchOracle",
    "Hyperband",
    "HyperbandOracle",
    "OptunaOracle",
    "RandomSearch",
    "RandomSearchOracle",
    "SearchReport",
    "Tuner",
    "activation_space",
    "plot_learning_curves",
    "plot_parallel",
    "plot_scores",
    "search_report",
]
