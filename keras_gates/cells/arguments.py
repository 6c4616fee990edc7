"""Which arguments a cell takes, and what to say of those it does not."""

import functools
import inspect

from keras_gates.validation import close_matches, listed

# Arguments that keras.layers.Layer takes.
LAYER_ARGUMENTS = ("name", "dtype", "trainable", "activity_regularizer", "autocast")
# What Keras' layers take, or took, and what to write here instead.
_INPUT = "begin the model with keras.Input((time, features))"
_INSTEAD = {
    "implementation": "there is one implementation, so leave it out",
    "use_cudnn": "`backprop` chooses how the layer runs, so leave it out",
    "time_major": "sequences are (batch, time, features), so transpose them before the layer",
    "batch_input_shape": "begin the model with keras.Input(batch_shape=(batch, time, features))",
    **dict.fromkeys(("input_shape", "input_dim", "input_length"), _INPUT),
}
_VARIABLE = inspect.Parameter.VAR_KEYWORD
# What Keras calls an argument -> what it is called here.
KERAS_NAMES = {"activation": "candidate_activation", "recurrent_activation": "gate_activation"}


def sign(function, *others):
    """Gives a function the signature with all keyword arguments that its `**kwargs` stand for.

    Args:
        function: a function.
        *others: those that it passes them on to.
    """
    signature = inspect.signature(function)
    found = dict(signature.parameters)
    variable = [name for name, p in found.items() if p.kind is _VARIABLE]
    if not variable:
        return
    del found[variable[0]]
    for other in others:
        for name, parameter in inspect.signature(other).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in found:
                found[name] = parameter
    function.__signature__ = signature.replace(parameters=[*found.values()])


@functools.cache  # asked whenever an attribute of a layer is set
def options(cell_class):
    """Names of all arguments that a cell takes besides those of every Keras layer."""
    return frozenset(inspect.signature(cell_class).parameters) - {*LAYER_ARGUMENTS}


def refuse_given(owner, given, names, reason):
    """A TypeError for the first of `names` in `given`, which `owner` sets itself."""
    for name in names:
        if name in given:
            raise TypeError(
                f"{owner} takes no argument `{name}`: {reason}. Received: {name}={given[name]!r}"
            )


def refuse_kept(owner, given, cell):
    """A TypeError for the first name in `given` that the `__init__` of a class of cells does not
    take, though the one that it overrides does."""
    taken = inspect.signature(cell).parameters
    overriding = next(kind for kind in cell.__mro__ if "__init__" in vars(kind))
    overridden = [kind for kind in overriding.__mro__[1:] if hasattr(kind, "options")][:1]
    for name in given:
        if name not in taken and any(name in inspect.signature(k).parameters for k in overridden):
            raise TypeError(
                f"{owner} takes no argument `{name}`: {overriding.__name__}.__init__ does not take "
                "it. Let it take **kwargs, and pass these on to super().__init__"
            )


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
        others = [cell.__name__ for cell in cells if name in options(cell)]
        hint = close_matches(name, {*known, *close})
        if name in KERAS_NAMES:
            hint = f"; what Keras calls {name} is {KERAS_NAMES[name]} here"
        elif f"{name}_activation" in known:
            hint = f"; did you mean '{name}_activation'?"
        elif name in _INSTEAD:
            hint = f"; {_INSTEAD[name]}"
        elif others:
            hint = f"; it belongs to {listed(others)}"
        hint = hint or f". It takes {', '.join(sorted(known))}"
        raise TypeError(f"{owner} takes no argument `{name}`{hint}")
