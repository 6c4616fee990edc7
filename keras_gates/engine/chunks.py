"""How a sequence is cut into chunks."""

# Steps of a chunk, at most. More of them spread the cost of launching a kernel over more work;
# fewer stay in the processor's cache.
STEPS = 25
# The projections of the states are kept for the backward pass up to this size, in bytes.
KEPT = 128 * 2**20


def steps_of_a_chunk(time):
    """How many time steps a chunk has, so that all are equally long; `time` may be None."""
    return ceil(time, ceil(time, STEPS)) if time else STEPS


def ceil(a, b):
    """a / b, rounded up; of integers or integer tensors."""
    return -(-a // b)
