"""A callback that follows one training of a trial: its history, its best epoch, its divergence."""

import math
import os

import keras
import keras_tuner
import numpy as np

from keras_gates.validation import close_matches


class Watch(keras.callbacks.Callback):
    """Keeps the figures of every epoch and the weights of the best, and stops at divergence.

    Training has diverged when the loss, the objective or a weight is not finite; NaN and infinities
    are the same in that. The loss is looked at after every batch, the rest after every epoch.

    Args:
        objective: a `keras_tuner.Objective`.
        checkpoint: path for the weights of the best epoch.
        report: called after every epoch with its number, from 1, and its figures; whether to go on
            no further. Default: always go on.
        required: whether the objective must be among the figures of every epoch.

    Raises:
        keras_tuner.errors.FatalValueError: at the end of the first epoch, the objective is required
            and not there.

    Attributes:
        model: Keras sets it; None before `fit`.
        epoch: how many epochs have been begun.
        history: from the name of a figure to its values.
        reason: why training diverged, or None.
        pruned: whether `report` ended it.
        best, best_epoch: the figures and the number of the best epoch, or None.
    """

    def __init__(self, objective, checkpoint, report=None, required=False):
        super().__init__()
        self.required = required
        self.objective, self.checkpoint, self.report = objective, checkpoint, report
        self.epoch, self.history, self.reason, self.pruned = 0, {}, None, False
        self.best = self.best_epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if self.reason is None and not math.isfinite(loss):
            self._diverged(f"loss became {float(loss)} in epoch {self.epoch}, batch {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if self.required and not self.objective.has_value(logs):
            raise _no_objective(self.objective, logs)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        if self.reason is None:
            self._look_for_divergence(logs)
        if self.reason is None:
            self._keep_if_best(logs)
        if self.reason is None and self.report is not None and self.report(self.epoch, logs):
            self.pruned = self.model.stop_training = True

    def _look_for_divergence(self, logs):
        objectives = [o.name for o in getattr(self.objective, "objectives", [self.objective])]
        for name in ("loss", "val_loss", *objectives):
            if not math.isfinite(logs.get(name, 0.0)):
                self._diverged(f"{name} became {logs[name]} in epoch {self.epoch}")
                return
        for variable in self.model.trainable_variables:
            # bfloat16 is not one of NumPy's own types.
            if not np.isfinite(keras.ops.convert_to_numpy(variable).astype("float32")).all():
                self._diverged(f"{variable.path} was not finite after epoch {self.epoch}")
                return

    def _keep_if_best(self, logs):
        # An objective that is not known before `HyperModel.fit` returns: the last epoch is kept.
        known = self.objective.has_value(logs) and self.best is not None
        value = self.objective.get_value
        if known and not self.objective.better_than(value(logs), value(self.best)):
            return
        self.best, self.best_epoch = logs, self.epoch
        stem, suffix = self.checkpoint.removesuffix(".weights.h5"), ".weights.h5"
        temporary = f"{stem}.{os.getpid()}{suffix}"
        self.model.save_weights(temporary, overwrite=True)
        os.replace(temporary, self.checkpoint)

    def _diverged(self, reason):
        self.reason = reason
        self.model.stop_training = True


def _no_objective(objective, logs):
    """The error for an objective that no epoch has a figure of."""
    wanted = [o.name for o in getattr(objective, "objectives", [objective])]
    missing = next(name for name in wanted if name not in logs)
    hint = close_matches(missing, logs)
    if missing.startswith("val_") and not any(name.startswith("val_") for name in logs):
        hint = "; `search` needs validation data for it: validation_split or validation_data"
    return keras_tuner.errors.FatalValueError(
        f"`objective` must be one of the figures of an epoch: {', '.join(logs)}. Received: "
        f"objective={missing!r}{hint}"
    )
