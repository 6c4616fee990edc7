"""A callback that watches the recurrent layers while a model trains."""

import csv
import math
import os
import time
import warnings
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_gates._keras.calls import stacklevel
from keras_gates.diagnostics import data, trace
from keras_gates.diagnostics.diagnosis import of_runs
from keras_gates.diagnostics.finite import NotFinite, at_fault
from keras_gates.diagnostics.report import Diagnosis
from keras_gates.validation import file_path, one_of, positive_integer, share

# What is small already may grow again without harm: a figure is compared with the smallest so
# far, but with no less than this share of the first.
_FLOOR = 0.1
_WHERE_AND_WHY = (
    "keras_gates.diagnostics.locate_nonfinite(model, x, y{}) says where it begins, and "
    "keras_gates.check_activations whether the activations are at fault."
)
# By default looks are passed over once they have taken this share of the time of training, so that
# the last one does not carry them beyond 5%.
COST = 0.04


class GateMonitor(keras.callbacks.Callback):
    """Records the figures of `diagnose` on a fixed sample, and sees divergence before NaN.

    Before training and after every epoch (or step), unless that would cost more than 5% of the
    time, it runs the model on the sample and appends each figure to `history`. Training has
    diverged when the loss, the norm of a state or the norm of a gradient is not finite, or is more
    than `growth` times the smallest so far (of figures that have fallen, a tenth of the first
    counts instead). The loss that Keras reports is looked at after every batch, whatever `unit` is.

    The sample is run for inference, so that training goes on as it would without the monitor. A
    look costs about two training steps, three where training is fused; the first, before training,
    takes a second more, and does not count.

    Args:
        x: inputs, as in `diagnose`. `samples` of them are kept, evenly spaced.
        y: their targets, for the figures of gradients; the model's loss on them is recorded too.
            On the TensorFlow backend.
        sample_weight: as in `diagnose`.
        every: look after every so many epochs or steps. Default: after every one, passing over
            some where looking has taken more than 5% of the time. Give a number to have looks,
            and so what "restore" restores, at the same epochs in every run.
        unit: "epoch" or "step" (a training batch; or what `steps_per_execution` makes of it).
        samples: the most samples that are kept. Gradients are of the loss on them as one batch,
            whose mean holds a factor 1 / samples: give the batch size of training to see what
            clipping sees there.
        margin: see `diagnose`.
        log_dir: folder for TensorBoard scalars, written by `tf.summary`. Default: none.
        csv: path of a file with a line per look. It is replaced. Default: none.
        on_divergence: "warn", once; "stop" training as well; or "restore", which stops it too, and
            gives the model the weights that it had when it was last looked at and sound, and its
            optimizer the state that it had then, but for the learning rate. Another `fit` can go
            on from there. A copy of both is kept in memory.
        growth: factor, above 1.

    Attributes:
        history: a dict of equally long lists: "epoch" or "step" (how many of them had been
            finished, through all calls of `fit`; 0 is before training), "sample/loss" with `y`,
            and the figures by names such as "gated_rnn/update/mean",
            "gated_rnn/update/saturated_high", "gated_rnn/hidden/norm",
            "gated_rnn/gradient/log_slope", "gated_rnn/clipped". With unit="epoch" they are in the
            history that `fit` returns as well, NaN where an epoch was passed over; with "step"
            they are here alone, as that has one entry per epoch. The last entry after "restore" is
            what showed the divergence; or, if that was the loss of a batch, the last one before it.
        diagnosis: the `Diagnosis` of the last look, with the figures per time step and findings.
        reason: why training diverged in the last `fit`, in words; None if it did not.
        diverged_at: the epoch or step in which it did, counted from 1 through all calls of `fit`;
            0, if the model was broken before training; None, if it did not.

    Raises:
        ValueError: an argument out of its range; when training begins, what `diagnose` raises, or
            NaN in the sample that the model makes NaN of, and with "restore" also that the model is
            broken already.
        ImportError: `log_dir` without TensorFlow or tensorboard.

    Example:

    >>> x, y = numpy.random.normal(size=(20, 30, 3)), numpy.zeros((20, 1))
    >>> model = keras.Sequential([keras.Input((None, 3)), keras_gates.GatedRNN(8),
    ...                           keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> monitor = keras_gates.GateMonitor(x, y, every=1, on_divergence="restore")
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    >>> monitor.reason, monitor.history["epoch"]  # print(monitor.diagnosis) shows the last look
    (None, [0, 1, 2])
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        every: int | None = None,
        unit: Literal["epoch", "step"] = "epoch",
        samples: int = 32,
        margin: float = 0.05,
        log_dir: str | os.PathLike | None = None,
        csv: str | os.PathLike | None = None,
        on_divergence: Literal["warn", "stop", "restore"] = "warn",
        growth: float = 1000.0,
    ) -> None:
        super().__init__()
        self.every = None if every is None else positive_integer("every", every)
        self.unit = one_of("unit", unit, ("epoch", "step"))
        self.margin = share("margin", margin)
        self.on_divergence = one_of("on_divergence", on_divergence, ("warn", "stop", "restore"))
        is_number = isinstance(growth, (int, float)) and not isinstance(growth, bool)
        if not is_number or not 1 < growth < math.inf:
            raise ValueError(
                f"`growth` is a factor and must be a finite number above 1. Received: {growth!r}"
            )
        self.growth = float(growth)
        samples = positive_integer("samples", samples)
        if data.is_dataset(x):
            given = data.batches(x, y, sample_weight)
        else:
            x = data.arrays("x", x)
            if y is not None:
                y = data.arrays("y", y)
                data.check_same_length(x, y)
            weights = data.weights(sample_weight, y)
            given = [tuple(values for values in (x, y, weights) if values is not None)]
        # Copies, so that the whole of `x` need not stay in memory. What joins batches of different
        # lengths is up to the model.
        self._batches, self._kept = data.spread(given, samples)
        self._bad = data.not_finite_in(given)
        self.csv = None if csv is None else file_path("csv", csv)
        if log_dir is not None and not isinstance(log_dir, (str, os.PathLike)):
            raise ValueError(f"`log_dir` must be a path, or None. Received: log_dir={log_dir!r}")
        self.log_dir = log_dir
        self.history: dict[str, list] = {}
        self.diagnosis: Diagnosis | None = None
        self.reason = self.diverged_at = None
        self._tracer = self._writer = None
        self._at_fault: dict[str, NotFinite] = {}  # what is not finite, and harms the model
        self._sound: list[tuple] = []  # pairs of a variable and its value when all was well
        self._sound_at = 0
        self._first: dict[str, float] = {}
        self._smallest: dict[str, float] = {}
        self._finished = 0  # epochs or steps
        if log_dir is not None:
            _summary()

    # ------------------------------------------------------------------ called by Keras

    def on_train_begin(self, logs=None):
        if self._tracer is None or self._tracer.model is not self.model:
            data.check_model(self.model)
            x, self.y, self.weights = data.joined(self._batches, self.model)
            self.x = data.fitted(self.model, data.arrays("x", x))
            data.check_tokens(self.model, self.x)
            if self.y is not None:
                data.check_targets(self.model, self.y)
                data.check_compiled(self.model, "gradients are recorded")
                bad, _ = self._bad.get("y", (None, None))
                data.check_labels(self.model, self.y, self._kept, bad)
            self._at_fault = {
                name: bad
                for name, (bad, some) in self._bad.items()
                if name in at_fault(self.model, *some)
            } or at_fault(self.model, self.x, self.y, self.weights)
            self._tracer = trace.Tracer(self.model, gradients=self.y is not None).compile()
            self._sound = []
        self._epochs = 0  # of this call of `fit`
        self.reason = self.diverged_at = None
        optimizer = getattr(self.model, "optimizer", None)
        if self.on_divergence == "restore" and not getattr(optimizer, "built", True):
            # Keras would do it in the first step, after the first look.
            optimizer.build(self.model.trainable_variables)
        if not self.history:
            self._look()
            if self.reason is not None and self.on_divergence == "restore":
                raise ValueError(
                    f"{self.reason} There are no sound weights to restore. "
                    f"{_WHERE_AND_WHY.format('')} If they are not, make {self.model.name!r} anew, "
                    "or load sound weights."
                )
        self._began, self._looking = time.perf_counter(), 0.0

    def on_train_batch_end(self, batch, logs=None):
        if self.reason is None:
            self._check({"training loss": (logs or {}).get("loss")}, self._finished + 1)
        if self.unit == "step":
            self._finish()

    def on_epoch_end(self, epoch, logs=None):
        if self.unit != "epoch":
            return
        figures = self._finish()
        kept = getattr(self.model, "history", None)
        if kept is None:
            return
        # In the history alone: in `logs` they would fill the progress bar.
        for name in [*self.history][1:]:
            past = kept.history.setdefault(name, [])
            past += [math.nan] * (self._epochs - len(past))
            past.append((figures or {}).get(name, math.nan))
        self._epochs += 1

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.flush()

    # ------------------------------------------------------------------ looking

    def _finish(self):
        """Counts an epoch or step; the figures, if it is one to look at."""
        self._finished += 1
        now = time.perf_counter()
        if self.every is None:
            due = self._looking <= COST * (now - self._began)
        else:
            due = self._finished % self.every == 0
        if self.reason is not None and self.on_divergence == "restore":
            due = False  # the weights are those of a look before
        figures = self._look() if due else None
        self._looking += time.perf_counter() - now
        return figures

    def _look(self):
        """Records the figures of the model as it is now, and returns them."""
        count = data.samples(self.x)
        runs = [*trace.runs(self._tracer, self.x, self.y, count, self.weights)]
        self.diagnosis = of_runs(self._tracer, runs, self.margin)
        figures = {self.unit: self._finished}
        watched = {}
        if self.y is not None:
            figures["sample/loss"] = watched["loss on the sample"] = float(
                np.mean([run.loss for run in runs])
            )
        figures.update(self.diagnosis.scalars())
        for layer in self.diagnosis.layers:
            for name, state in layer.states.items():
                watched[f"norm of the {name} state of {layer.name!r}"] = state.norm
            if layer.gradient:
                watched[f"gradient norm of {layer.name!r}"] = layer.gradient.largest
        self._record(figures)
        if self._check(watched, self._finished) and self.on_divergence == "restore":
            kept = [*self.model.weights, *_state(getattr(self.model, "optimizer", None))]
            self._sound = [(variable, ops.copy(variable.value)) for variable in kept]
            self._sound_at = self._finished
        return figures

    def _record(self, figures):
        rows = len(next(iter(self.history.values()), []))
        for name, value in figures.items():
            self.history.setdefault(name, [math.nan] * rows).append(value)
        for past in self.history.values():
            past += [math.nan] * (rows + 1 - len(past))
        if self.csv is not None:
            with open(self.csv, "a" if rows else "w", newline="") as file:
                writer = csv.writer(file)
                if not rows:
                    writer.writerow(self.history)
                writer.writerow([past[-1] for past in self.history.values()])
        if self.log_dir is not None:
            summary = _summary()
            if self._writer is None:
                self._writer = summary.create_file_writer(str(self.log_dir))
            with self._writer.as_default():
                for name, value in figures.items():
                    if name != self.unit:
                        summary.scalar(name, value, step=self._finished)

    # ------------------------------------------------------------------ divergence

    def _check(self, watched, now):
        """Whether all is well with the figures, by name; if not, does what is to be done.

        `now` is the epoch or step that they are of, counted from 1; 0 is before training.
        """
        for name, value in watched.items():
            if value is None:
                continue
            value = float(value)
            if not math.isfinite(value):
                return self._diverged(now, f"the {name} is {value}")
            if value < 0:  # a loss that has no zero to be compared with
                continue
            reference = max(
                self._smallest.get(name, value), _FLOOR * self._first.setdefault(name, value)
            )
            self._smallest[name] = min(self._smallest.get(name, value), value)
            if value > self.growth * reference > 0:
                return self._diverged(
                    now, f"the {name} is {value:.3g}, {value / reference:.3g} times what it was"
                )
        return True

    def _diverged(self, now, what):
        if self.reason is not None:
            return False
        for name in self._at_fault if not now else ():
            raise self._at_fault[name].error()
        self.diverged_at = now
        when = f"in {self.unit} {now}" if now else "before it began"
        self.reason = f"Training diverged {when}: {what}."
        for bad in self._at_fault.values():
            self.reason += f" The data may be at fault: of `{bad.argument}` {bad}."
        if not now and self.on_divergence == "restore":
            return False  # which is an error
        done = ""
        if self.on_divergence != "warn":
            self.model.stop_training = True
            done = " It is stopped."
        if self.on_divergence == "restore" and self._sound:
            for variable, value in self._sound:
                variable.assign(value)
            those = f"of {self.unit} {self._sound_at}"
            if not self._sound_at:
                those += ", from before training"
            done = (
                f" It is stopped, and the last weights that were sound on the sample are restored, "
                f"those {those}, with the optimizer's state."
            )
            if not self._at_fault:
                done += f" {_WHERE_AND_WHY.format(', replay_epochs=5')}"
        warnings.warn(self.reason + done, stacklevel=stacklevel())
        return False


def _state(optimizer):
    """The variables of an optimizer; not the learning rate, which is lowered for another `fit`."""
    return [v for v in getattr(optimizer, "variables", []) if v.name != "learning_rate"]


def _summary():
    """tf.summary, if it can write."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "`log_dir` needs TensorFlow to write with: pip install tensorflow"
        ) from error
    try:
        import tensorboard  # noqa: F401  (tf.summary.scalar needs it)
    except ImportError as error:
        raise ImportError("`log_dir` needs tensorboard: pip install tensorboard") from error
    return tf.summary
