"""What an engine is, and which one layers run on for a while."""

import abc
import contextlib
import contextvars

import keras
from keras import ops

from keras_gates._keras.calls import may_be_recorded
from keras_gates.cells import zoneout
from keras_gates.engine.recurrence import Dropout

PLAIN = "an exported model consists of plain operations"


class Engine(abc.ABC):
    """Runs one built cell over sequences."""

    how = "fused"  # as `explain` says it

    @abc.abstractmethod
    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """The hidden states and the last states.

        Args:
            sequences: (batch, time, features).
            states: the states and penalty sums before the first step, each (batch, ...).
            mask: (batch, time) or None.
            dropout: a `Dropout` of masks, each (batch, features) or (batch, units), and for
                zoneout (batch, time, units).
            return_sequences: whether the hidden state of every step is wanted.
            gradients: whether a gradient may be asked for. Without one, nothing is kept.

        Returns:
            The hidden states, (batch, time, units) or None, and the list of the last states.
        """

    def run(self, layer, sequences, initial_state, mask, training):
        """What `keras.layers.RNN.inner_loop` returns, for the states with the sums of penalties."""
        cell = layer.cell
        cell.refuse_loss_scaling(training)
        dropout = Dropout([], [])
        if training:
            dropout = Dropout(
                _as_list(cell.get_dropout_mask(sequences[:, 0])),
                _as_list(cell.get_recurrent_dropout_mask(initial_state[0])),
                zoneout.drawn(cell, ops.shape(sequences)[:2]),
            )
        if layer.go_backwards:
            sequences = ops.flip(sequences, axis=1)
            mask = None if mask is None else ops.flip(mask, axis=1)
            dropout = dropout._replace(kept=[ops.flip(m, axis=1) for m in dropout.kept])
        gradients = training or may_be_recorded()
        hidden, last = self(
            sequences, initial_state, mask, dropout, layer.return_sequences, gradients
        )
        last_output = last[0]
        if mask is not None:
            zero = ops.zeros((), dtype=last_output.dtype)
            shown = _shown(mask, layer.zero_output_for_mask)
            if shown is not None:
                last_output = ops.where(shown[:, -1:], last_output, zero)
                if hidden is not None:
                    hidden = ops.where(shown[:, :, None], hidden, zero)
        return last_output, last_output[:, None] if hidden is None else hidden, last


_used = contextvars.ContextVar("used", default=None)


@contextlib.contextmanager
def use(engine_of):
    """While it lasts, layers run inference on other engines, without penalties.

    Args:
        engine_of: from a layer to its `Engine`, or None for Keras' own loop.
    """
    token = _used.set(engine_of)
    try:
        yield
    finally:
        _used.reset(token)


def used(layer):
    """The engine that `use` has for a layer, or None."""
    engine_of = _used.get()
    return None if engine_of is None else engine_of(layer)


def in_use():
    """Whether `use` is in force: then Keras' own loop runs the layers that it has no engine for."""
    return _used.get() is not None


def _shown(mask, zero_output_for_mask):
    """Where the output is the hidden state; elsewhere it is zero. None: everywhere."""
    if zero_output_for_mask:
        return mask
    if keras.backend.backend() == "jax":
        return None
    # Keras on TensorFlow: before the first valid step there is no output to repeat.
    return ops.cumsum(ops.cast(mask, "int32"), axis=1) > 0


def _as_list(masks):
    if masks is None:
        return []
    return list(masks) if isinstance(masks, (list, tuple)) else [masks]
