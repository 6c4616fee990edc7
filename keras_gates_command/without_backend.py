"""Keras without TensorFlow, in a second instead of six: for what computes nothing with tensors.

Verdicts and the contents of files need Keras' layers and its symbolic tensors, and values
that NumPy computes. Keras' NumPy backend imports JAX, which need not be installed, for convolutions
and Fourier transforms alone; empty modules stand for it while Keras is imported. scikit-learn and
matplotlib, which Keras imports where they are, are passed over too. Tried with Keras 3.8 and 3.15.
"""

import contextlib
import os
import sys
import types

_EMPTY = ("jax", "jax.lax", "keras.src.backend.jax", "keras.src.backend.jax.math")
_PASSED_OVER = ("sklearn", "matplotlib")


def import_keras():
    """Imports Keras on its NumPy backend; with another Keras, for which that fails, as usual."""
    if "keras" in sys.modules:
        return
    before, environment = set(sys.modules), dict(os.environ)
    os.environ["KERAS_BACKEND"] = "numpy"
    try:
        with _in_place():
            import keras  # noqa: F401
    except Exception:  # of whatever kind another release raises
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "keras":
                del sys.modules[name]
    finally:
        # Processes that this one starts have the user's; Keras has changed more of it.
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


@contextlib.contextmanager
def _in_place():
    """Empty modules, and None for what is passed over, instead of what may be there."""
    modules = {**{name: _Empty(name) for name in _EMPTY}, **dict.fromkeys(_PASSED_OVER)}
    kept = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(kept)


class _Empty(types.ModuleType):
    """A module in which everything is there, and is itself."""

    def __getattr__(self, name):
        if name == "__path__":  # of a package, so that there are modules in it
            return []
        if name.startswith("__"):
            raise AttributeError(name)
        return self
