"""The former name of `keras_gates.deployment`, for one more release."""

import sys
import types
import warnings

from keras_gates import deployment
from keras_gates.deployment import *  # noqa: F403

__all__ = deployment.__all__

warnings.warn(
    "keras_gates.export is a function now, and what else it held is in keras_gates.deployment: "
    "import from there.",
    DeprecationWarning,
    stacklevel=2,
)


class _CallableModule(types.ModuleType):
    """Importing a module puts it in the place of the function `keras_gates.export`."""

    def __call__(self, *args, **kwargs):
        return deployment.export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
