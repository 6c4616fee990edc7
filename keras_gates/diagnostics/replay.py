"""A training done again, step by step, up to the first that is not finite."""

import dataclasses

import keras
import numpy as np
from keras import tree

from keras_gates.convert.keras import copy_state
from keras_gates.diagnostics import data, weights


@dataclasses.dataclass
class Step:
    """The training step after which a loss or a weight was not finite first.

    Attributes:
        model: a copy of the model, with its weights before that step.
        samples: indices of the samples of its batch.
        number, epoch: the step and its epoch, counted from 1.
        weight: name and the first value of a weight that was not finite after it, or None.
    """

    model: keras.Model
    samples: np.ndarray
    number: int
    epoch: int
    weight: tuple | None


def first_nonfinite(model, given, epochs, batch_size, seed):
    """The `Step` at which a training of a copy of `model` broke; or how many steps were sound."""
    keras.utils.set_random_seed(seed)
    copy = _copy(model, given[0])
    order = np.random.default_rng(seed)
    count, number = data.samples(given[0]), 0
    for epoch in range(epochs):
        samples = order.permutation(count)
        for start in range(0, count, batch_size):
            batch = samples[start : start + batch_size]
            before = copy.get_weights()
            number += 1
            loss = copy.train_on_batch(*[data.take(values, batch) for values in given])
            weight = next(((name, value) for name, _, value in weights.nonfinite(copy)), None)
            if weight is None and np.isfinite(np.ravel(loss)[0]):
                continue
            copy.set_weights(before)
            return Step(copy, batch, number, epoch + 1, weight)
    return number


def _copy(model, x):
    """The model as it was made: its weights are drawn anew, and it is compiled alike."""
    try:
        copy = keras.models.clone_model(model)
        copy(tree.map_structure(lambda v: v[:1], x))  # some are built by their first call alone
        loss_weights = (model.get_compile_config() or {}).get("loss_weights")
    except Exception as error:  # of a class of the user's own, of any kind
        raise ValueError(
            f"`replay_epochs` needs {model.name!r} made anew from its config, and that raised "
            f"{type(error).__name__}: {str(error).splitlines()[0]} Give its class a `get_config`."
        ) from error
    for one, other in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
        if hasattr(one, "adapt") and one.built:
            copy_state(one, other)
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    copy.compile(optimizer, model.loss, loss_weights=loss_weights, jit_compile=model.jit_compile)
    return copy
