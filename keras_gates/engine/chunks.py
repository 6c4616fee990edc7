"""How a sequence is cut into chunks."""

# Steps of a chunk: more of them spread the cost of launching a kernel over more work, fewer leave
# an array of one block (steps, rows, units) in the processor's cache.
FEWEST_STEPS, MOST_STEPS = 25, 200
ELEMENTS = 100_000
# The projections of the states are kept for the backward pass up to this size, in bytes.
KEPT = 128 * 2**20


def steps_of_a_chunk(time, rows, units):
    """How many time steps a chunk has, so that all chunks are equally long.

    Args:
        time: steps of the sequence, or None.
        rows, units: shape of a state.
    """
    if time is None:
        return FEWEST_STEPS  # of what may be a short sequence
    most = min(max(FEWEST_STEPS, ELEMENTS // (rows * units)), MOST_STEPS)
    return ceil(time, ceil(time, most)) if time else 1


def ceil(a, b):
    """a / b, rounded up; of integers or integer tensors."""
    return -(-a // b)
