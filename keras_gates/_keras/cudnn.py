"""How Keras has cuDNN run the sequences of its own layers."""

import keras
from keras.src import backend


def run(kind, sequences, states, mask, weights, return_sequences):
    """The hidden states and the last states of a GRU or an LSTM, by cuDNN.

    Args:
        kind: "gru" or "lstm".
        sequences: (batch, time, features).
        states: the initial ones, each (batch, units).
        mask: booleans (batch, time) with the valid steps first, or None.
        weights: kernel, recurrent kernel and bias, arranged as in `keras.layers`.
        return_sequences: whether the hidden state of every step is wanted.

    Returns:
        The hidden states, (batch, time, units) or None, and the list of the last states.

    Raises:
        NotImplementedError: this version of Keras does not have it on this backend, or cuDNN
            cannot be reached. Keras has both on TensorFlow, an LSTM on JAX from 3.14 on, and both
            on PyTorch from 3.15 on. (Through the LSTM of 3.10 to 3.13 no gradient flows there, and
            that of 3.14 always ends in a loop.)
    """
    # A function that came with 3.15.
    if keras.backend.backend() == "torch" and not hasattr(backend, "bidirectional_lstm"):
        raise NotImplementedError
    kernel, recurrent_kernel, bias = weights
    _, hidden, last = getattr(backend, kind)(
        sequences,
        *states,
        mask,
        kernel=kernel,
        recurrent_kernel=recurrent_kernel,
        bias=bias,
        activation=keras.activations.tanh,
        recurrent_activation=keras.activations.sigmoid,
        return_sequences=return_sequences,
    )
    # Before 3.14 the one state of a GRU came alone.
    last = list(last) if isinstance(last, (list, tuple)) else [last]
    return (hidden if return_sequences else None), last
