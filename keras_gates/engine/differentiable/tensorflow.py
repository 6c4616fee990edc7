"""On TensorFlow."""

import tensorflow as tf

from keras_gates._keras.calls import is_pulled_by_a_tape


def differentiable(forward, backward, again, watched=True):
    """A function of tensors, with its derivatives.

    Args:
        forward: from a list of tensors to the list of results, and what it keeps for `backward`.
        backward: from the list, what was kept, gradients at the results and whether one at the
            first of the list is wanted, to these gradients.
        again: from the list, gradients at the results and gradients at what `backward` gives (of
            all of the list) to the gradients at both; see `pulled_again`.
        watched: whether somebody may want a gradient at the first of the list.
    """

    @tf.custom_gradient
    def run(*given):
        results, memory = forward([tf.stop_gradient(value) for value in given])

        def grad(*d):
            # Of a first layer the gradient at its input is wanted by nobody.
            wants_first = watched or not is_pulled_by_a_tape()

            @tf.custom_gradient
            def pull(*d_and_given):
                stopped = [tf.stop_gradient(value) for value in d_and_given]
                d, given = d_and_given[: len(results)], d_and_given[len(results) :]

                def pull_again(*v):
                    if not wants_first:
                        v = [tf.zeros_like(given[0]), *v]
                    return again(given, d, v)

                given_now, d_now = stopped[len(results) :], stopped[: len(results)]
                return backward(given_now, memory, d_now, wants_first), pull_again

            found = pull(*d, *given)
            return found if wants_first else [None, *found]

        return results, grad

    return run


def pulled_again(recurrence, mask, dropout, return_sequences, given, d, v):
    """The vector-Jacobian product of a backward pass.

    The sequence runs once more, step by step, and TensorFlow differentiates it twice.

    Args:
        recurrence: a `Recurrence`.
        mask: (batch, time) or None.
        dropout: a `Dropout` of masks.
        return_sequences: whether the hidden states of all steps are among the results.
        given: what the recurrence is a function of: the sequences, the states, the weights.
        d: gradients at its results, which the backward pass made into gradients at `given`.
        v: gradients at those.

    Returns:
        A list of gradients: at each of `d` and each of `given`.
    """
    weights = len(given) - len(recurrence.variables)
    x, *states = given[:weights]
    with tf.GradientTape() as outer:
        outer.watch([*d, *given])
        with tf.GradientTape() as inner:
            inner.watch(given)
            results = _run(recurrence, x, states, given[weights:], mask, dropout, return_sequences)
        found = inner.gradient(
            results, given, output_gradients=d, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
    return outer.gradient(
        found,
        [*d, *given],
        output_gradients=v,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )


def _run(recurrence, x, states, values, mask, dropout, return_sequences):
    """The hidden states, with `return_sequences`, and the last states."""
    x = tf.transpose(x, (1, 0, 2))
    valid = None if mask is None else tf.transpose(tf.cast(mask, tf.bool))[:, :, None]
    kept = [tf.transpose(m, (1, 0, 2)) for m in dropout.kept]
    known = x.shape[0]
    time = tf.shape(x)[0] if known is None else known
    hidden = [tf.TensorArray(x.dtype, time, element_shape=states[0].shape)] * return_sequences

    def step(t, states, hidden):
        states = recurrence.advance(
            values,
            recurrence.project_input(values, x[t], dropout),
            recurrence.project_state(values, states[0], dropout),
            states,
            None if valid is None else valid[t],
            dropout._replace(kept=[m[t] for m in kept]),
        )
        return t + 1, states, [array.write(t, states[0]) for array in hidden]

    _, last, hidden = tf.while_loop(
        lambda t, *_: t < time, step, (0, states, hidden), maximum_iterations=known
    )
    return [*(tf.transpose(array.stack(), (1, 0, 2)) for array in hidden), *last]
