"""What a `GatedRNN` is called with: errors for what it cannot take, in words of its own."""

import keras
from keras import ops

from keras_gates._keras.calls import is_exporting, wrapper
from keras_gates.cells.checking import same_shapes

# What to do with sequences of several lengths.
PADDED = (
    "Sequences of several lengths get one length with keras.utils.pad_sequences(x, "
    "dtype='float32', padding='post'), and a keras.layers.Masking layer before"
)


def check_sequences(layer, given):
    kind, dtype = type(given).__name__, str(getattr(given, "dtype", ""))
    hint = ""
    if kind == "RaggedTensor":
        hint = (
            ". Give it one length, x.to_tensor(), and mask=tf.sequence_mask(x.row_lengths()) "
            "for what is padding then"
        )
    elif isinstance(given, (list, tuple)):
        hint = f". {PADDED} this one; an initial state is `initial_state`"
    elif kind == "SparseTensor":
        hint = ". Make it dense: tf.sparse.to_dense(x)"
    elif hasattr(given, "shape") and not _not_numbers(dtype):
        return
    of_dtype = f" and dtype {dtype}" if hasattr(given, "shape") else ""
    raise TypeError(
        f"{layer.name!r} takes `sequences` as one tensor or array of numbers, (batch, time, "
        f"features). Received: sequences of type {kind}{of_dtype}{hint}"
    )


def check_initial_state(layer, sequences, initial_state):
    if initial_state is None:
        return
    states = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
    given = [tuple(s.shape) if hasattr(s, "shape") else type(s).__name__ for s in states]
    batch, units, names = sequences.shape[0], layer.units, layer.cell.state_names
    for state in states:
        if _not_numbers(dtype := str(getattr(state, "dtype", ""))):
            raise ValueError(
                f"{layer.name!r} takes `initial_state` of real numbers. Received: dtype {dtype}"
            )

    def fits(shape):
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != units:
            return False
        return batch is None or shape[0] in (None, batch)

    if len(given) != len(names) or not all(map(fits, given)):
        raise ValueError(
            f"{layer.name!r} takes `initial_state` as {len(names)} tensor(s) "
            f"({', '.join(names)}) of shape {(batch, units)}. Received: shapes {given}"
        )


def checked_mask(layer, sequences, mask):
    """`mask` as booleans of the right shape, whatever path the sequences take."""
    if mask is None:
        return None
    expected = tuple(sequences.shape[:2])
    try:
        mask = ops.cast(mask, "bool")
    except Exception as error:  # of the backend, of any kind
        raise ValueError(
            f"{layer.name!r} takes `mask` as a tensor or array of booleans, (batch, time) = "
            f"{expected}. Received: mask of type {type(mask).__name__}: {mask!r:.80}"
        ) from error
    if not same_shapes([mask], [expected]):
        raise ValueError(
            f"{layer.name!r} takes a `mask` of shape (batch, time) = {expected}. "
            f"Received: shape {tuple(mask.shape)}"
        )
    return mask


def of_known_batch(layer, sequences):
    """The same sequences, of which the batch size is looked at when it is known."""
    if layer.states is None or keras.backend.backend() != "tensorflow" or is_exporting():
        return sequences
    import tensorflow as tf

    batch = layer.states[0].shape[0]
    message = (
        f"{layer.name} is stateful and keeps the states of {batch} samples, so that every "
        "batch must have as many: leave out the rest that is smaller, or set stateful=False"
    )
    with tf.control_dependencies(
        [tf.debugging.assert_equal(tf.shape(sequences)[0], batch, message)]
    ):
        return tf.identity(sequences)


def check_wrapper(layer):
    """Raises where Keras' wrappers have no place for all outputs, at which they fail."""
    if not (layer.return_gates or layer.return_state):
        return
    around = wrapper(layer)
    if isinstance(around, keras.layers.TimeDistributed):
        more = "return_gates" if layer.return_gates else "return_state"
        raise ValueError(
            "keras.layers.TimeDistributed takes a layer with one output. Received: "
            f"{layer.name!r} with {more}=True. Call the layer on keras.ops.reshape(x, (-1, "
            "*x.shape[2:])), with the outer axis in that of the batch, and reshape what it "
            "returns."
        )
    if around is not None and not layer.return_state:
        raise ValueError(
            "keras.layers.Bidirectional takes further outputs, such as gates, beside the last "
            f"states alone. Received: {layer.name!r} with return_gates=True, "
            "return_state=False. Give it return_state=True as well: the Bidirectional "
            "returns the output, states and gates of the forward layer, states and gates of "
            "the backward layer (in the order in which it reads)."
        )


def _not_numbers(dtype):
    """Whether a dtype, by its name, is not one of real numbers."""
    return any(kind in dtype for kind in ("string", "<U", "object", "complex"))
