"""Where the first NaN or infinity comes from."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_gates import activations, html
from keras_gates.cells.base import CANDIDATE
from keras_gates.diagnostics import data, replay, trace, weights
from keras_gates.diagnostics.finite import at_fault, not_finite
from keras_gates.validation import positive_integer

_ADVICE = {
    "x": "Clean the data: a masked step needs finite values too.",
    "y": "Clean the targets; for those that nobody knows, any number will do with a sample_weight "
    "of zero.",
    "sample_weight": "Clean the weights of the samples.",
    "weights": "They are a consequence: an earlier update was not finite. Give replay_epochs= to "
    "train a copy up to there and see where it began; or load weights from before it (GateMonitor "
    'keeps them with on_divergence="restore") and look again.',
    "forward": "Everything that this was computed from is finite",  # and what else is known
    "loss": "The outputs of the model are finite, and their loss is not: a log of 0, or targets "
    "that the loss does not allow.",
    "backward": "The forward pass is finite. What made it is in the equations of the step after, "
    "or in a layer behind: an activation or a loss without a finite derivative there, or an "
    "explosion, which grad_clip_norm stops.",
    "update": "Loss and gradients of the batch are finite, run for inference. Lower the learning "
    "rate, or look at what dropout and the optimizer do in this step.",
}
_COPY = "a copy with new weights"
# The square of more than this is no float32.
_HUGE = 1e18
# States above this have grown.
_GROWN = 1e3


@dataclasses.dataclass
class NonFinite:
    """The first value that is not finite; false if there is none.

    Attributes:
        where: "x", "y", "sample_weight", "weights", "forward", "loss", "backward" or, in a training
            that was done again, "update"; None if everything is finite.
        layer: name of the layer, as in `diagnose`.
        quantity: "gate update", "candidate", "hidden state", "output", "gradient of the hidden
            state", or the name of a weight; of several inputs or targets the name of the one.
        time_step: index on the time axis of the layer's input.
        sample: index in `x`.
        value: nan, inf or -inf.
        advice: what to do.
        training_step, epoch: with `replay_epochs`, the training step (batch) in which it came up
            first, and its epoch, both counted from 1; of a training that stayed finite, how many
            steps and epochs it had.
    """

    where: str | None = None
    layer: str | None = None
    quantity: str | None = None
    time_step: int | None = None
    sample: int | None = None
    value: float | None = None
    advice: str | None = None
    training_step: int | None = None
    epoch: int | None = None

    def __bool__(self):
        return self.where is not None

    def __str__(self):
        return self._sentence() + (f" {self.advice}" if self else "")

    def _repr_html_(self):
        if self:
            return html.block(html.finding("error", self._sentence(), self.advice))
        return html.block(html.finding("sound", self._sentence()))

    def _sentence(self):
        if not self:
            if self.training_step is None:
                return "Everything is finite."
            return (
                f"Everything stayed finite in a training of {self.training_step} steps "
                f"({self.epoch} epochs), of {_COPY}. Another seed, or more epochs, may show it."
            )
        name = self.quantity
        at = [repr(name) if name and self.where in ("x", "y") else name or self.where]
        if self.layer is not None:
            at.append(f"of layer {self.layer!r}")
        if self.time_step is not None:
            at.append(f"at time step {self.time_step}")
        if self.sample is not None:
            at.append(f"in sample {self.sample}")
        what = {
            "x": "the inputs",
            "y": "the targets",
            "sample_weight": "the weights of the samples",
            "weights": "the weights",
        }.get(
            self.where,
            f"the {self.where}" if self.where in ("loss", "update") else f"the {self.where} pass",
        )
        when = ""
        if self.training_step is not None:
            when = f" in training step {self.training_step} (epoch {self.epoch}) of {_COPY}"
        return f"Not finite in {what}{when}: {' '.join(at)} is {self.value}."


def locate_nonfinite(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int = 32,
    replay_epochs: int | None = None,
    seed: int = 0,
) -> NonFinite:
    """The first value of a model on data that is NaN or infinite.

    Looks, in this order, at `x`, `y`, `sample_weight`, the weights, the forward pass (layer by
    layer in the order of execution; inside a recurrent layer step by step, gate by gate, as the
    equations have them), the loss, and the backward pass (the gradients dL/dh_t, from the last
    layer and the last step back, then those of the weights). Masked steps of recurrent layers are
    passed over. Like `diagnose` it runs the model for inference: what dropout alone brings about is
    not found. NaN in the data is left in peace where it does no harm: where a layer fills gaps, or
    the loss leaves out what nobody knows.

    Args:
        model: a built Keras model; compiled, if `y` is given. It need not have recurrent layers.
        x: its inputs, such as the batch that gave NaN.
        y: the targets, to look at the loss and the backward pass too. On the TensorFlow backend.
        sample_weight: as in `diagnose`.
        batch_size: samples per batch.
        replay_epochs: of a model whose weights are lost already: a copy with new weights is
            trained on `x` and `y` for at most so many epochs, up to the first step after which
            the loss or a weight is not finite, and is looked at as it was before that step. The
            model itself stays as it is.
        seed: of that training: of the first weights (by `keras.utils.set_random_seed`) and of the
            order of the samples.

    Returns:
        A `NonFinite`, false if everything is finite. `print` shows it in words. Its `time_step`
        counts along the input, also in a layer that reads it backwards.

    Raises:
        As `diagnose`.

    Example:

    >>> found = keras_gates.diagnostics.locate_nonfinite(model, x, y)
    >>> if found:
    ...     print(found)
    Not finite in the forward pass: gate update of layer 'gated_rnn' at time step 17 in sample 3
    is nan. ...
    """
    batch_size = positive_integer("batch_size", batch_size)
    purpose = "the backward pass is looked at"
    x, y, sample_weight = data.checked(model, x, y, purpose, sample_weight)
    given = {
        "x": (x, [tensor.name for tensor in getattr(model, "inputs", None) or ()]),
        "y": (y, getattr(model, "output_names", None) or ()),
        "sample_weight": (sample_weight, ()),
    }
    for where in at_fault(model, x, y, sample_weight):
        values, announced = given[where]
        return _in_data(where, values, _names(values, announced))
    data.check_labels(model, y)
    if replay_epochs is not None:
        epochs = positive_integer("replay_epochs", replay_epochs)
        if y is None:
            raise ValueError("`y` must be given with `replay_epochs`, which trains. Received: None")
        return _replayed(model, (x, y, sample_weight), epochs, batch_size, seed)
    return _in_weights(model) or _in_runs(model, (x, y, sample_weight), batch_size)


def _replayed(model, given, epochs, batch_size, seed):
    """What is not finite first in a training of a copy."""
    step = replay.first_nonfinite(model, given, epochs, batch_size, seed)
    if isinstance(step, int):
        return NonFinite(training_step=step, epoch=epochs)
    batch = [data.take(values, step.samples) for values in given]
    found = _in_runs(step.model, batch, len(step.samples))
    if not found:
        path, value = step.weight or ("loss", float("nan"))
        layer, _, name = path.rpartition("/")
        found = _found("update", value, layer=layer or None, quantity=name)
    if found.sample is not None:
        found.sample = int(step.samples[found.sample])
    found.training_step, found.epoch = step.number, step.epoch
    return found


def _in_runs(model, given, batch_size):
    x, y, sample_weight = given
    tracer = trace.Tracer(model, gradients=y is not None, everything=True)
    seen = 0
    for run in trace.runs(tracer, x, y, batch_size, sample_weight):
        batch = data.take(x, slice(seen, seen + run.samples))
        found = _in_forward(run, batch) or _in_loss(run) or _in_backward(run)
        if found:
            if found.sample is not None:
                found.sample += seen
            return found
        seen += run.samples
    return NonFinite()


def _names(values, announced):
    """What each of several arrays is called; None where that is not known."""
    count = len(tree.flatten(values))
    if isinstance(values, dict) and len(values) == count:
        return sorted(values)  # the order of `tree`
    return announced if 1 < len(announced) == count else [None] * count


def _in_data(where, values, names):
    for name, array in zip(names, [] if values is None else tree.flatten(values), strict=False):
        if bad := not_finite(where, array):
            at = {"sample": bad.sample, "time_step": bad.time_step}
            return _found(where, bad.value, quantity=name, **at)
    return None


def _in_weights(model):
    for path, _, value in weights.nonfinite(model):
        layer, _, name = path.rpartition("/")
        return _found("weights", value, layer=layer or None, quantity=name)
    return None


def _in_forward(run, x):
    before = tree.flatten(x)
    for call in run.calls:
        if isinstance(call, list):
            found = _in_steps(call)
        elif any(_first(np.asarray(values)) is not None for values in before):
            found = None  # of gaps in the data, which a layer behind this one fills
        else:
            found = _in_outputs(call, before)
        if found:
            return found
        before = call.outputs if isinstance(call, trace.Call) else _states_of(call)
    return None


def _states_of(traces):
    return [values for one in traces for values in one.states.values()]


def _in_steps(traces):
    """The first in a recurrent layer: by step, by cell, by the order of the equations."""
    for t in range(traces[0].valid.shape[1]):
        for one in traces:
            named = [
                (CANDIDATE if name == CANDIDATE else f"gate {name}", values)
                for name, values in one.activated.items()
            ]
            named += [(f"{name} state", values) for name, values in one.states.items()]
            for quantity, values in named:
                index = _first(values[:, t], one.valid[:, t])
                if index is not None:
                    found = _at_step("forward", one, t, quantity, index, values)
                    before = [states[index[0], :t] for states in _states_of(traces)]
                    found.advice += _why_not_finite(one.cell, quantity, before)
                    return found
    return None


def _why_not_finite(cell, quantity, states):
    """What is known of a value in a recurrent layer that is not finite, and what to do."""
    largest = _largest(states)
    if largest > _GROWN:
        return (
            f", and states before it are as large as {largest:.2g}. If they grow with time, keep "
            "the gates in [0, 1] and take a bounded candidate; diagnose shows them."
        )
    named = {CANDIDATE: cell.candidate_activation}
    named |= {f"gate {name}": activation for name, activation in cell.gate_activations.items()}
    activation = named.get(quantity, getattr(cell, "output_activation", None))
    try:
        if activation is not None:
            activations.profile(activation)
    except activations.NotANumberError as error:
        return f", but {error}: it has no finite value there. Take one that always has a value."
    except ValueError:  # nothing is known of it
        pass
    return (
        f", and no state before it is above {largest:.2g}: look at the weights and the inputs of "
        "this layer, and at what its activations make of them."
    )


def _in_outputs(call, before):
    """The first in the outputs of a layer that is not recurrent; `before` it are these values."""
    for values in call.outputs:
        index = _first(values)
        if index is not None:
            step = index[1] if values.ndim >= 3 else None
            found = _found(
                "forward",
                values[index],
                layer=call.name,
                quantity="output",
                sample=index[0] if values.ndim else None,
                time_step=step,
            )
            largest = _largest(before)
            found.advice += (
                f", and up to {largest:.2g}, which overflows here: scale the data, or look at what "
                "makes it grow."
                if largest > _HUGE
                else ": this layer has no finite value there, as a log, a root or a quotient of "
                "what it does not allow has none, or it overflows. Keep its inputs away from there."
            )
            return found
    return None


def _largest(arrays):
    """The largest of absolute values, of arrays of numbers; 0 without any."""
    arrays = [a for a in arrays if a.size and np.issubdtype(a.dtype, np.number)]
    return max([float(np.abs(a).max()) for a in arrays], default=0.0)


def _in_loss(run):
    if run.loss is None or np.isfinite(run.loss):
        return None
    outputs = [np.abs(v) for c in run.calls if isinstance(c, trace.Call) for v in c.outputs]
    if outputs and outputs[-1].size and outputs[-1].max() > _HUGE:
        found = _found("loss", run.loss, quantity="loss", sample=_where_largest(outputs[-1])[0])
        found.advice = (
            f"The outputs are as large as {outputs[-1].max():.2g}, so that their loss overflows. "
            "Scale the data, or look at what makes them grow: diagnose shows the states."
        )
        return found
    return _found("loss", run.loss, quantity="loss")


def _where_largest(values):
    return np.unravel_index(values.argmax(), values.shape)


def _in_backward(run):
    for call in reversed(run.calls):
        traces = call if isinstance(call, list) else []
        for t in reversed(range(traces[0].valid.shape[1] if traces else 0)):
            for one in reversed(traces):
                for name, gradient in one.gradients.items():
                    index = _first(gradient[:, t], one.valid[:, t])
                    if index is not None:
                        quantity = f"gradient of the {name} state"
                        return _at_step("backward", one, t, quantity, index, gradient)
    for name, gradient in run.weight_gradients:
        index = _first(gradient)
        if index is not None:
            layer, _, weight = name.rpartition("/")
            quantity = f"gradient of {weight}"
            return _found("backward", gradient[index], layer=layer, quantity=quantity)
    return None


def _at_step(where, one, t, quantity, index, values):
    sample, unit = index
    step = values.shape[1] - 1 - t if one.backwards else t
    return _found(
        where,
        values[sample, t, unit],
        layer=one.name,
        quantity=quantity,
        time_step=step,
        sample=sample,
    )


def _found(where, value, **at):
    at = {name: int(i) if isinstance(i, np.integer) else i for name, i in at.items()}
    return NonFinite(where, value=float(value), advice=_ADVICE[where], **at)


def _first(values, valid=None):
    """The index of the first value that is not finite, or None."""
    if not np.issubdtype(values.dtype, np.floating):
        return None
    bad = ~np.isfinite(values)
    if valid is not None:
        bad &= valid[:, None]
    return tuple(np.argwhere(bad)[0]) if bad.any() else None
