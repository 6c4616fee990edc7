"""Activations beside Keras' own, what each is like, and how they are found by name.

Gates: `tanh_gate`, `softsign_gate`, `relu_gate`, `hard_sigmoid_keras2`, `fast_gate`. Candidates:
`penalized_tanh`, `min_gru_g`. Layers take each by its name, like Keras' own. `profile` tells the
range, slope, symmetry and zeros of any activation:

>>> keras_gates.activations.profile("hard_sigmoid").max_slope_at
0
>>> keras_gates.activations.profile(lambda x: 2 * keras.ops.tanh(x)).upper
2.0
"""

from keras_gates.activations.functions import (
    fast_gate,
    hard_sigmoid_keras2,
    min_gru_g,
    penalized_tanh,
    relu_gate,
    softsign_gate,
    tanh_gate,
)
from keras_gates.activations.lookup import get, is_serialized, name_of, names, serialize
from keras_gates.activations.profiles import (
    ANALYTIC,
    MixesUnitsError,
    NotANumberError,
    Profile,
    measure,
    profile,
    values,
)

NotANumber = NotANumberError  # the name that it had

__all__ = [
    "ANALYTIC",
    "MixesUnitsError",
    "NotANumber",
    "NotANumberError",
    "Profile",
    "fast_gate",
    "get",
    "hard_sigmoid_keras2",
    "is_serialized",
    "measure",
    "min_gru_g",
    "name_of",
    "names",
    "penalized_tanh",
    "profile",
    "relu_gate",
    "serialize",
    "softsign_gate",
    "tanh_gate",
    "values",
]
