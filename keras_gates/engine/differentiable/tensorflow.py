"""On TensorFlow."""

import tensorflow as tf

from keras_gates._keras.calls import has_tangents, is_pulled_by_a_tape


def differentiable(infer, forward, backward, steps, around, watched=True):
    """A function of a list of tensors and of whether gradients may be asked for, with derivatives.

    Args:
        infer: from the list to the list of results.
        forward: the same, and what it keeps for `backward`.
        backward: from the list, what was kept, gradients at the results and whether one at the
            first of the list is wanted, to these gradients.
        steps: from the list and `around` to the results, by operations that have derivatives of
            every kind; see `step_by_step`.
        around: further tensors, nested, which have no gradients; None stands for none.
        watched: whether somebody may want a gradient at the first of the list.
    """

    def run(*given):
        nested = tf.nest.flatten(around)
        further = [value for value in nested if value is not None]
        results, memory = forward([tf.stop_gradient(value) for value in given])

        def grad(*d):
            # Of a first layer the gradient at its input is wanted by nobody.
            wants_first = watched or not is_pulled_by_a_tape()
            ends = len(d), len(d) + len(given)

            @tf.custom_gradient
            def pull(*values):
                d, given, further = values[: ends[0]], values[slice(*ends)], values[ends[1] :]

                def pull_again(*v):
                    if not wants_first:
                        v = [tf.zeros_like(given[0]), *v]
                    present = iter(further)
                    filled = [None if value is None else next(present) for value in nested]
                    found = _pulled_again(
                        steps, given, d, v, tf.nest.pack_sequence_as(around, filled)
                    )
                    return [*found, *[None] * len(further)]

                given_now, d_now = ([tf.stop_gradient(v) for v in values] for values in (given, d))
                return backward(given_now, memory, d_now, wants_first), pull_again

            here = [*given, *further]
            if not tf.executing_eagerly():  # tensors of this graph, to be found from it again
                here = [tf.identity(value) for value in here]
            found = pull(*d, *here)
            return found if wants_first else [None, *found]

        return results, grad

    def computed(given, gradients):
        if not gradients:
            return list(infer(given))
        given = [tf.convert_to_tensor(value) for value in given]
        if has_tangents(given):  # derivatives forward, of which `backward` knows nothing
            return steps(given, around)
        return list(tf.custom_gradient(run)(*given))

    return computed


def _pulled_again(steps, given, d, v, around):
    """The vector-Jacobian product of a backward pass.

    The sequence runs once more, step by step, and TensorFlow differentiates it twice.

    Args:
        steps, around: see `differentiable`.
        given: what the recurrence is a function of: the sequences, the states, the weights.
        d: gradients at its results, which the backward pass made into gradients at `given`.
        v: gradients at those.

    Returns:
        A list of gradients: at each of `d` and each of `given`.
    """
    zero = {"unconnected_gradients": tf.UnconnectedGradients.ZERO}
    if not tf.executing_eagerly():  # what a ForwardAccumulator has computed here no tape sees
        d, given = ([tf.identity(value) for value in values] for values in (d, given))
        found = tf.gradients(steps(given, around), given, d, **zero)
        return tf.gradients(found, [*d, *given], v, **zero)
    with tf.GradientTape() as outer:
        outer.watch([*d, *given])
        with tf.GradientTape() as inner:
            inner.watch(given)
            results = steps(given, around)
        found = inner.gradient(results, given, d, **zero)
    return outer.gradient(found, [*d, *given], v, **zero)


def step_by_step(recurrence, return_sequences, given, around):
    """The hidden states, with `return_sequences`, and the last states.

    Args:
        recurrence: a `Recurrence`.
        return_sequences: whether the hidden states of all steps are among the results.
        given: the sequences, the states, the weights.
        around: the mask, (batch, time) or None, and a `Dropout` of masks.
    """
    mask, dropout = around
    weights = len(given) - len(recurrence.variables)
    (x, *states), values = given[:weights], given[weights:]
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
