"""Which arguments a cell takes, and what to say of those it does not."""

import functools
import inspect

from keras_gates.validation import close_matches

# Arguments that keras.layers.Layer takes.
LAYER_ARGUMENTS = ("name", "dtype", "trainable", "activity_regularizer", "autocast")
# What Keras calls an argument -> what it is called here.
KERAS_NAMES = {"activation": "candidate_activation", "recurrent_activation": "gate_activation"}


@functools.cache  # asked whenever an attribute of a layer is set
def own_options(cell_class):
    """Names of the arguments that the class itself adds to those of its bases."""
    if "__init__" not in vars(cell_class):
        return frozenset()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cell_class.__init__).parameters
    return frozenset(n for n, p in parameters.items() if p.kind in kinds and n != "self")


def refuse_unknown(owner, given, known, cells, close=()):
    """A TypeError for the first name in `given` that `owner` does not take.

    Args:
        owner: what the message calls the taker.
        given: the names that came.
        known: the names that it takes.
        cells: cell classes, one of which may have the argument.
        close: names besides `known` that a misspelled one may have meant.
    """
    for name in given:
        if name in known:
            continue
        others = [cell.__name__ for cell in cells if name in own_options(cell)]
        hint = close_matches(name, {*known, *close})
        if name in KERAS_NAMES:
            hint = f"; what Keras calls {name} is {KERAS_NAMES[name]} here"
        elif others:
            hint = f"; it belongs to {' and '.join(others)}"
        raise TypeError(f"{owner} takes no argument `{name}`{hint}")
