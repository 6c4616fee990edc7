"""Layer normalization of what a cell projects, and its weights."""

from keras import ops

# As in keras.layers.LayerNormalization.
EPSILON = 1e-3


def add_weights(cell, recurrent, biases):
    """Gives a cell a gain for all that is normalized, and the biases, which are added after it.

    Args:
        recurrent: the blocks that U has columns for.
        biases: from each block to what its bias b starts with.
    """

    def add(name, initializer, **arguments):
        weight = cell.add_weight((cell.units,), initializer, name=name, **arguments)
        cell.norm_weights[name] = weight

    of_bias = {"regularizer": cell.bias_regularizer, "constraint": cell.bias_constraint}
    for block in cell.blocks:
        add(f"kernel_gain_{block}", "ones")
        if cell.use_bias:
            add(f"kernel_bias_{block}", biases[block], **of_bias)
    for block in recurrent:
        add(f"recurrent_gain_{block}", "ones")
        if cell.use_bias and cell.two_biases:
            add(f"recurrent_bias_{block}", cell.bias_initializer, **of_bias)
    for name in cell.normalized_states:
        add(f"state_gain_{name}", "ones")
        add(f"state_bias_{name}", "zeros")


def applied(cell, which, values):
    """From each name to its value, normalized, with its gain and bias.

    Args:
        which: "kernel", "recurrent" or "state".
        values: from names of blocks, or of states, to (batch, units).
    """
    groups = (tuple(values),) if which == "state" else cell.norm_groups or (cell.blocks,)
    found = {}
    for group in groups:
        names = [name for name in group if name in values]
        if names:
            found.update(zip(names, normalized([values[n] for n in names]), strict=True))
    for name, value in found.items():
        found[name] = value * cell.norm_weights[f"{which}_gain_{name}"]
        bias = cell.norm_weights.get(f"{which}_bias_{name}")
        found[name] = found[name] if bias is None else found[name] + bias
        cell.step.note_normalized(found[name], values[name])
    return {name: found[name] for name in values}


def normalized(values):
    """Values (batch, units), together of mean 0 and variance 1 over units.

        (v - mean) / sqrt(variance + ε)

    Source: Ba, Kiros, Hinton, "Layer normalization", 2016.
    """
    count = len(values) * values[0].shape[-1]
    mean = _total(values) / count
    centered = [v - mean for v in values]
    variance = _total([ops.square(v) for v in centered]) / count
    return [v / ops.sqrt(variance + EPSILON) for v in centered]


def _total(values):
    sums = [ops.sum(v, axis=-1, keepdims=True) for v in values]
    return sum(sums[1:], sums[0])
