"""How KerasTuner's tuners run a trial."""

from keras_tuner.src.engine.tuner import maybe_distribute

__all__ = ["maybe_distribute"]
