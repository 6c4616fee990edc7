"""How KerasTuner's tuners run a trial."""

from keras_tuner.src.engine.tuner import maybe_distribute
from keras_tuner.src.engine.tuner_utils import TunerCallback

__all__ = ["TunerCallback", "maybe_distribute"]
