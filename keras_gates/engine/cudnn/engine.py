"""cuDNN's engine of one cell, on any backend: what the backends' own modules differentiate."""

from keras import ops

from keras_gates._keras import cudnn
from keras_gates.engine.base import Engine
from keras_gates.engine.cudnn import kind_of
from keras_gates.engine.recurrence import Recurrence


class CudnnEngine(Engine):
    """Runs one cell by cuDNN. A subclass gives `computed` a derivative that has one itself, step by
    step: cuDNN has none of its backward pass.

    Args:
        cell: a built GatedCell that `why_not` has no objection to.
    """

    how = "cuDNN, as in keras.layers"

    def __init__(self, cell):
        self.recurrence = Recurrence(cell)
        self.kind = kind_of(cell)

    def computed(self, given, mask, dropout, return_sequences):
        """The list of the hidden states, with `return_sequences`, and the last states.

        Args:
            given: what they are a function of: the sequences, the states, the weights.
            mask, dropout, return_sequences: see `Engine`.

        Raises:
            NotImplementedError: see `keras_gates._keras.cudnn`.
        """
        dtype = self.recurrence.cell.compute_dtype
        x, *rest = [ops.cast(value, dtype) for value in given]
        weights = len(rest) - len(self.recurrence.variables)
        if len(dropout.inputs) > 1:
            raise NotImplementedError  # one of inputs per block
        for m in dropout.inputs:
            x = x * ops.cast(m, dtype)[:, None]
        hidden, last = self.masked(x, rest[:weights], mask, rest[weights:], return_sequences)
        return [*([hidden] if return_sequences else []), *last]

    def masked(self, x, states, mask, weights, return_sequences):
        """The hidden and the last states of inputs after dropout."""
        return cudnn.run(self.kind, x, states, mask, weights, return_sequences)

    def apart(self, results, return_sequences):
        """The hidden states, or None, and the list of the last states, of what `computed` gave."""
        results = list(results)
        return (results.pop(0) if return_sequences else None), results
