"""Values that are linear in a leaf: `a * leaf + b`, with a and b made of everything else."""

from keras_gates.equations.values import apply, constant, ordered


def affine(value, leaf):
    """The values (a, b) of which `value` is `a * leaf + b`; None where it is not of that form.

    Args:
        value: a value, without clipping of gradients.
        leaf: a leaf, of which a and b are not made.
    """
    zero, one = constant(0), constant(1)
    pairs = {id(leaf): (one, zero)}  # of what depends on the leaf
    for v in ordered([value]):
        if any(id(a) in pairs for a in v.arguments):
            found = _RULES.get(v.operation, _not_linear)(v, [pairs.get(id(a)) for a in v.arguments])
            if found is None:
                return None
            pairs[id(v)] = found
    return pairs.get(id(value), (zero, value))


def _not_linear(v, pairs):
    return None


def _by_part(v, pairs):
    """Sums, differences and signs."""
    pairs = [p or (constant(0), a) for p, a in zip(pairs, v.arguments, strict=True)]
    return tuple(apply(v.operation, *parts) for parts in zip(*pairs, strict=True))


def _multiply(v, pairs):
    if all(pairs):
        return None
    pair, factor = (pairs[0], v.arguments[1]) if pairs[0] else (pairs[1], v.arguments[0])
    return tuple(part * factor for part in pair)


def _divide(v, pairs):
    return None if pairs[1] else tuple(part / v.arguments[1] for part in pairs[0])


def _where(v, pairs):
    condition, *values = v.arguments
    if pairs[0]:
        return None
    pairs = [p or (constant(0), a) for p, a in zip(pairs[1:], values, strict=True)]
    return tuple(apply("where", condition, *parts) for parts in zip(*pairs, strict=True))


_RULES = {
    **dict.fromkeys(("add", "subtract", "negative"), _by_part),
    "multiply": _multiply,
    "divide": _divide,
    "where": _where,
}
