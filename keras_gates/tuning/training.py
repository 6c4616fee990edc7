"""One training of a trial: the callback that follows it, and how it ended."""

import functools
import itertools
import math
import pathlib
import traceback

import keras
import keras_tuner
import numpy as np
from keras import tree

from keras_gates import diagnostics
from keras_gates.diagnostics import weights
from keras_gates.diagnostics.finite import not_finite
from keras_gates.tuning import records
from keras_gates.validation import close_matches

_DATA = ("x", "y", "sample_weight")  # in their order in `validation_data`


class Watch(keras.callbacks.Callback):
    """Keeps the figures of every epoch and the weights of the best, and stops at divergence.

    Training has diverged when the loss, the objective or a weight is not finite; NaN and infinities
    are the same in that. The loss is looked at after every batch, the rest after every epoch.

    Args:
        seed: of the training.
        objective: a `keras_tuner.Objective`.
        checkpoint: path for the weights of the best epoch.
        begin: called when training begins.
        report: called after every epoch with its number, from 1, and its figures; whether to go on
            no further.
        required: whether the objective must be among the figures of every epoch.

    Raises:
        keras_tuner.errors.FatalValueError: at the end of the first epoch, the objective is required
            and not there.

    Attributes:
        model: Keras sets it; None before `fit`.
        record: the `records.Execution`, as far as it is known.
        best: the figures of the best epoch, or None.
    """

    def __init__(self, seed, objective, checkpoint, begin, report, required):
        super().__init__()
        self.objective, self.checkpoint = objective, checkpoint
        self.begin, self.report = begin, report
        self.required = required
        self.names = [one.name for one in getattr(objective, "objectives", [objective])]
        self.record, self.best = records.Execution(seed, records.FINISHED), None

    def on_train_begin(self, logs=None):
        self.begin()

    def on_epoch_begin(self, epoch, logs=None):
        self.record.epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            where = f"epoch {self.record.epoch}, batch {batch + 1}"
            self._end(records.DIVERGED, f"loss became {float(loss)} in {where}")

    def on_epoch_end(self, epoch, logs=None):
        epoch = self.record.epoch
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if self.required and not self.objective.has_value(logs):
            raise keras_tuner.errors.FatalValueError(_missing(self.names, logs))
        for name, value in logs.items():
            self.record.history.setdefault(name, []).append(value)
        for name in ("loss", "val_loss", *self.names):
            if not math.isfinite(logs.get(name, 0.0)):
                self._end(records.DIVERGED, f"{name} became {logs[name]} in epoch {epoch}")
        for name, *_ in weights.nonfinite(self.model):
            self._end(records.DIVERGED, f"{name} was not finite after epoch {epoch}")
        if self.record.reason is None:
            self._keep_if_best(logs)
            if self.report(epoch, logs):
                self._end(records.PRUNED, f"no better than other trials after epoch {epoch}")

    def _keep_if_best(self, logs):
        # An objective that is not known before `HyperModel.fit` returns: the last epoch is kept.
        value = self.objective.get_value
        known = self.objective.has_value(logs) and self.best is not None
        if not known or self.objective.better_than(value(logs), value(self.best)):
            self.best, self.record.best_epoch = logs, self.record.epoch
            self.model.save_weights(self.checkpoint, overwrite=True)

    def _end(self, outcome, reason):
        """Stops the training, of whose reasons the first counts."""
        if self.record.reason is None:
            self.record.outcome, self.record.reason = outcome, reason
            self.model.stop_training = True


def _missing(names, logs):
    """The error for an objective that no epoch has a figure of."""
    missing = next(name for name in names if name not in logs)
    hint = close_matches(missing, logs)
    if missing.startswith("val_") and not any(name.startswith("val_") for name in logs):
        hint = "; `search` needs validation data for it: validation_split or validation_data"
    return (
        f"`objective` must be one of the figures of an epoch: {', '.join(logs)}. Received: "
        f"objective={missing!r}{hint}"
    )


def described(error):
    """An error in one line: what it is, what it says in the end, and where it was raised."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    # TensorFlow puts the operations of the graph between its first line and what was wrong.
    known = ("File ", "Detected at ", "[[{{node", "Stack trace")
    lines = [line for line in map(str.strip, lines) if line and not line.startswith(known)]
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not {"site-packages", "keras_gates"} & set(pathlib.Path(frame.filename).parts)
    ]
    where = f" ({pathlib.Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return " ".join(lines) + where


def refuse_not_finite(given, build):
    """An error for NaN or infinities in the data, with which every trial would diverge.

    A layer may fill gaps in the data, and a loss leave out targets that nobody knows: a model says
    whether its own do, on samples that have them. Of datasets nothing is known.

    Args:
        given: the arguments of `fit` by name.
        build: makes a compiled model.
    """
    validation = given.get("validation_data")
    validation = validation if isinstance(validation, (list, tuple)) else ()
    for named in (
        {name: given.get(name) for name in _DATA},
        {f"validation_data[{i}]": values for i, values in enumerate(validation)},
    ):
        bad = next(filter(None, itertools.starmap(not_finite, named.items())), None)
        if bad is None:
            continue
        try:
            data = dict(zip(_DATA, named.values(), strict=False))
            some = tree.map_structure(functools.partial(_taken, bad.tried), data)
            loss = build().evaluate(**some, verbose=0, return_dict=True)["loss"]
        except Exception:  # of any kind, where models take their data otherwise: trials will tell
            continue
        if not math.isfinite(loss):
            raise bad.error()


def _taken(samples, values):
    return None if values is None else np.asarray(values)[samples]


def sparsity(model, args, kwargs, samples=32):
    """The share of zeros in the hidden states on the first samples of the data, or None."""
    x = kwargs.get("x", args[0] if args else None)
    try:
        x = tree.map_structure(lambda array: np.asarray(array[:samples]), x)
        layers = diagnostics.diagnose(model, x, lyapunov=False).layers
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return None  # no arrays, or no recurrent layers
    hidden = [layer.states["hidden"].sparsity for layer in layers if "hidden" in layer.states]
    return float(np.mean(hidden)) if hidden else None
