"""Compiling a copy of a model as the model is."""

import warnings

import keras
from keras import tree

from keras_gates._keras import compiled
from keras_gates._keras.calls import stacklevel


def compile_as(model, copy):
    """Compiles `copy` with the losses, functions and names of `model` themselves, and with an
    optimizer and metrics, which keep states, made anew. Warns where that is impossible."""
    try:
        if type(model).compile is not keras.Model.compile:
            if type(model).compile_from_config is keras.Model.compile_from_config:
                raise ValueError("its class has a `compile` of its own, and no compile_from_config")
            copy.compile_from_config(model.get_compile_config())
            return
        arguments = compiled.arguments(model)
        given = arguments["optimizer"]
        copy.compile(
            **{
                **arguments,
                "optimizer": given and _optimizer(given),
                "metrics": tree.map_structure(_metric, arguments["metrics"]),
                "weighted_metrics": tree.map_structure(_metric, arguments["weighted_metrics"]),
                "auto_scale_loss": model.optimizer is not given,
            }
        )
    except Exception as error:  # of a class of the user's own, of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(
            f"the copy of {model.name!r} is not compiled: {reason.rstrip('.')}. Call its "
            "`compile(...)` before training.",
            stacklevel=stacklevel(),
        )
        return
    if copy.optimizer and copy.built:
        copy.optimizer.build(copy.trainable_variables)


def _optimizer(optimizer):
    config, rate = optimizer.get_config(), compiled.learning_rate(optimizer)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = rate
    return type(optimizer).from_config(config)


def _metric(metric):
    if not isinstance(metric, keras.Metric):
        return metric
    copy = type(metric).from_config(metric.get_config())
    if _settings(copy) != _settings(metric):
        raise ValueError(f"the config of its metric {metric.name!r} does not say all")
    return copy


def _settings(metric):
    plain = (bool, int, float, str, type(None))
    return {
        name: value
        for name, value in vars(metric).items()
        if isinstance(value, plain) and not name.startswith("_")
    }
