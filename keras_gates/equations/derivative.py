"""The reverse-mode derivative of values: values again."""

from keras_gates.equations.operations import total
from keras_gates.equations.table import TABLE
from keras_gates.equations.values import apply, ordered


def pulled(outputs, gradients, leaves, products=True):
    """The gradients at leaves, from those at outputs.

    Args:
        outputs: a list of values.
        gradients: one value per output, of its shape.
        leaves: a list of values, for most purposes leaves of a program.
        products: whether gradients go through the products `value U_k` in the equations.

    Returns:
        (gradients, products): one value per leaf, or None where nothing depends on it; that of a
        leaf without rows has them, to be added up. And for each product `value U_k` on the way a
        tuple (k, value, gradient of the product).
    """
    found = {}

    def add(value, gradient):
        if gradient is None:
            return
        if gradient.wide and not value.wide:
            gradient = total(gradient)
        elif value.wide and not gradient.wide:
            gradient = apply("broadcast", gradient)
        before = found.get(id(value))
        found[id(value)] = gradient if before is None else before + gradient

    for output, gradient in zip(outputs, gradients, strict=True):
        add(output, gradient)
    passed, wanted = [], _on_the_way(outputs, leaves)
    for value in reversed(ordered(outputs)):
        gradient = found.get(id(value))
        if gradient is None or not value.arguments or any(value is leaf for leaf in leaves):
            continue
        if value.operation == "recurrent":
            if not products:
                continue
            passed.append((value["block"], value.arguments[0], gradient))
        pulled_back = _pull(value, gradient)
        for argument, of_argument in zip(value.arguments, pulled_back, strict=True):
            if id(argument) in wanted or _has_product(argument):
                add(argument, of_argument)
    return [found.get(id(leaf)) for leaf in leaves], passed


def _on_the_way(outputs, leaves):
    """Ids of the values that are computed from a leaf."""
    ids = {id(leaf) for leaf in leaves}
    for value in ordered(outputs):
        if any(id(a) in ids for a in value.arguments):
            ids.add(id(value))
    return ids


def _has_product(value):
    return any(v.operation == "recurrent" for v in ordered([value]))


def _pull(value, gradient):
    """The gradients at the arguments of a value."""
    row = TABLE[value.operation]
    if row.pull is not None:
        return row.pull(value, gradient)
    if row.expand is None:
        raise ValueError(f"the operation {value.operation!r} has no derivative")
    # Through what it expands to, as a function of its arguments.
    arguments = list(value.arguments)
    found, _ = pulled([row.expand(value)], [gradient], arguments)
    return found
