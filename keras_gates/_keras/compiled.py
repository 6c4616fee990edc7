"""What Keras keeps of how a model was compiled."""

import contextlib

import keras


def arguments(model):
    """Those that `compile` was called with, by name. The optimizer is one, whatever was given."""
    return dict(model._compile_config.config)


def learning_rate(optimizer):
    """A number, a variable, a schedule or a function."""
    return getattr(optimizer, "_learning_rate", None)


@contextlib.contextmanager
def not_compiled(model):
    """While it lasts, `keras.models.clone_model` takes a model for one that is not compiled."""
    compiled = isinstance(model, keras.Model) and model.compiled
    if compiled:
        model.compiled = False
    try:
        yield
    finally:
        if compiled:
            model.compiled = True
