"""What an engine is, and which one layers run on for a while."""

import abc
import contextlib
import contextvars


class Engine(abc.ABC):
    """Runs one built cell over sequences."""

    @abc.abstractmethod
    def __call__(self, sequences, states, mask, dropout, return_sequences, gradients=True):
        """The hidden states and the last states.

        Args:
            sequences: (batch, time, features).
            states: the states and penalty sums before the first step, each (batch, ...).
            mask: (batch, time) or None.
            dropout: a `Dropout` of masks, each (batch, features) or (batch, units).
            return_sequences: whether the hidden state of every step is wanted.
            gradients: whether a gradient may be asked for. Without one, nothing is kept.

        Returns:
            The hidden states, (batch, time, units) or None, and the list of the last states.
        """


_used = contextvars.ContextVar("used", default=None)


@contextlib.contextmanager
def use(engine_of):
    """While it lasts, layers run inference on other engines, without penalties.

    Args:
        engine_of: from a layer to its `Engine`, or None for what it would run on anyway.
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
