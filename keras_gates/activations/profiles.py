"""What an activation is like: its range, slope, symmetry, zeros and width, as numbers."""

import dataclasses
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_gates import html
from keras_gates.activations import lookup
from keras_gates.eager import eager_scope
from keras_gates.types import Activation

# Slopes are differences over cells of this width, which put every usual kink on a node.
_STEP, _REACH = 1 / 256, 32.0
# Where a bounded activation has come to its bounds, and an unbounded one has not: some inputs at
# each of several scales, which differ in phase.
_SCALES = np.array([1e2, 1e4, 1e6, 1e8])
_FAR = np.outer(_SCALES, 1 + 0.37 * np.arange(16)).ravel()
# A gate counts as saturated within this share of its range from either end.
_MARGIN = 0.05


@dataclasses.dataclass(frozen=True)
class Profile:
    """What `profile` finds. Inputs and values are pure numbers.

    Attributes:
        name: of the activation.
        lower, upper: infimum and supremum of its values; -inf, inf where there is none.
        max_slope: the largest |f'|; inf where it grows without bound.
        max_slope_at: the input nearest to 0 that has it.
        slope_at_zero, value_at_zero: f'(0), the mean of both sides at a kink, and f(0).
        far_slope: the limit of |f(x) / x| far out, on the side where it is larger.
        zero_centred: whether f(-x) = -f(x).
        monotone: whether f never falls.
        zero_share: the share of exact zeros when inputs are N(0, 1).
        saturation_width: the length of inputs at which f is more than 5% of its range away from
            both of its bounds; inf where it is unbounded.
    """

    name: str
    lower: float
    upper: float
    max_slope: float
    max_slope_at: float
    slope_at_zero: float
    value_at_zero: float
    far_slope: float
    zero_centred: bool
    monotone: bool
    zero_share: float
    saturation_width: float

    @property
    def bounded_below(self):
        return math.isfinite(self.lower)

    @property
    def bounded_above(self):
        return math.isfinite(self.upper)

    @property
    def bounded(self):
        return self.bounded_below and self.bounded_above

    def to_dict(self):
        return dataclasses.asdict(self)

    def __str__(self):
        return "\n".join([self.name, *(f"  {name:<17} {shown}" for name, shown in self._shown())])

    def _repr_html_(self):
        return html.block(
            html.element("h3", self.name), html.table(["figure", "value"], self._shown())
        )

    def _shown(self):
        """The figures: pairs of name and value as text."""
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            yield field.name, f"{value:.4g}" if isinstance(value, float) else str(value)


def profile(activation: Activation) -> Profile:
    """The profile of an activation, analytic where it is known and else measured.

    Args:
        activation: a name, an elementwise function of a tensor, or a Keras layer (as it is now: a
            PReLU changes while it trains; of a layer with one parameter per unit the first unit).

    Returns:
        A `Profile`.

    Raises:
        ValueError: an unknown name, or a function that is not elementwise, like softmax, or that
            itself raises an error, which is shown.

    Example:

    >>> keras_gates.activations.profile("hard_sigmoid").saturation_width
    5.4
    """
    function = lookup.get(activation, "activation", warn=False)
    known = ANALYTIC.get(getattr(function, "__name__", ""))
    if known is not None and lookup.get(known.name, "activation") is function:
        return known
    if isinstance(function, keras.Layer):
        return measure(function)  # its weights may change
    try:
        if function not in _measured:
            _measured[function] = measure(function)
        return _measured[function]
    except TypeError:  # not hashable, or without weak references
        return measure(function)


_measured: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class NotJudgedError(ValueError):
    """An activation gives no value for each of its inputs."""


class NotANumberError(ValueError):
    """An activation is NaN where it should have a value."""


class MixesUnitsError(ValueError):
    """An activation is not elementwise: a value depends on more than its own input."""


def measure(activation: Callable[[Any], Any]) -> Profile:
    """The profile of an activation, measured by evaluating it; see `profile`."""
    name = lookup.name_of(activation)
    count = round(_REACH / _STEP)
    nodes = _STEP * np.arange(-count, count + 1)
    middles = nodes[:-1] + _STEP / 2
    y, y_middle = values(activation, nodes), values(activation, middles)
    high, low = values(activation, _FAR), values(activation, -_FAR)
    if np.isnan(np.concatenate([y, y_middle])).any():
        raise NotANumberError(f"the activation {name} is NaN for some finite inputs")
    slopes = np.diff(y) / _STEP
    every = np.concatenate([y, y_middle, high, low])
    upper = math.inf if _grows(high) or _grows(low) else _snapped(np.nanmax(every))
    lower = -math.inf if _grows(-high) or _grows(-low) else _snapped(np.nanmin(every))
    far = max(_far_slope(high), _far_slope(low))
    steepest = np.abs(slopes).max()
    steep = middles[np.abs(slopes) >= steepest * (1 - 1e-4) - 1e-9]
    # Of two as near, the positive one.
    nearest = steep[np.lexsort((-steep, np.round(np.abs(steep), 2)))[0]]
    # Curvature that still grows at the end of what was looked at, as that of exp, has no bound.
    runs_away = math.isinf(far) and abs(nearest) > _REACH / 2
    value_at_zero = float(y[count])
    span = upper - lower
    width = math.inf
    if math.isfinite(span):
        inside = (y_middle > lower + _MARGIN * span) & (y_middle < upper - _MARGIN * span)
        width = float(inside.sum() * _STEP)
    return Profile(
        name=name,
        lower=lower,
        upper=upper,
        max_slope=math.inf if runs_away else float(steepest),
        max_slope_at=math.inf if runs_away else float(nearest if abs(nearest) > _STEP else 0.0),
        slope_at_zero=float((y[count + 1] - y[count - 1]) / (2 * _STEP)),
        value_at_zero=value_at_zero,
        far_slope=far,
        zero_centred=bool(np.allclose(y, -y[::-1], rtol=1e-5, atol=1e-6)),
        monotone=bool((np.diff(y) >= -1e-6).all()),
        zero_share=float(_normal_mass(nodes)[y_middle == 0].sum()),
        saturation_width=width,
    )


def values(activation: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """An elementwise activation at the numbers `x`, in float64."""
    x = np.asarray(x, "float64")
    name = lookup.name_of(activation)
    expected = (
        "an activation can be judged if it is elementwise, so that every value depends on its own "
        f"input alone, and this one mixes units. Received: {name}"
    )
    units, dtype = 2, "float32" if keras.backend.backend() == "jax" else "float64"
    if isinstance(activation, keras.Layer):
        layer, width = _runnable(activation)
        activation, units, dtype = layer, max(units, width), layer.compute_dtype

    def at(x, others):
        given = np.repeat(others[:, None], units, axis=1)
        given[:, 0] = x
        with eager_scope():
            inputs = keras.ops.convert_to_tensor(given, dtype)
            try:
                y = keras.ops.convert_to_numpy(activation(inputs))
            except Exception as failure:
                raise NotJudgedError(
                    f"{expected}, which raised {type(failure).__name__} for inputs of shape "
                    f"{given.shape}: {failure}"
                ) from failure
        if y.shape != given.shape:
            raise NotJudgedError(f"{expected}, with values of shape {y.shape} for {given.shape}")
        if np.iscomplexobj(y):
            raise NotJudgedError(
                f"an activation must give real numbers. Received: {name}, {y.dtype}"
            )
        return np.asarray(y, "float64")[:, 0]

    with np.errstate(all="ignore"):
        y, again = at(x, x[::-1]), at(x[::2], np.zeros_like(x[::2]))
    if not np.allclose(y[::2], again, equal_nan=True):
        raise MixesUnitsError(expected)
    return y


def _runnable(layer):
    """A layer to call, and how many units it takes: of one that is not built yet a copy, one."""
    if not layer.built:
        return fresh(layer), 1
    return layer, max([1, *[weight.shape[-1] for weight in layer.weights]])


def fresh(layer):
    """A copy of a layer, not built; itself, if Keras cannot copy what is inside, as a lambda."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what cannot be saved
            return type(layer).from_config(layer.get_config())
    except (TypeError, ValueError):
        return layer


def _grows(values):
    """Whether the values far out rise without bound."""
    if np.isposinf(values).any():
        return True
    with np.errstate(all="ignore"):
        highest = np.fmax.reduce(values.reshape(len(_SCALES), -1), axis=1)
        steps = np.diff(highest)
    return bool((steps > 0).all() and steps[-1] > 0.1 * (1 + abs(highest[-2])))


def _far_slope(values):
    last = values.reshape(len(_SCALES), -1)[-1]
    if not np.isfinite(last).all():
        return math.inf
    return round(float(np.abs(last / _FAR[-len(last) :]).max()), 6)


def _snapped(value):
    """Without the last digits, which an asymptote has not reached."""
    return float(round(value, 6)) + 0.0


def _normal_mass(nodes):
    """The probability of N(0, 1) in each cell between the nodes."""
    from scipy.special import ndtr

    return np.diff(ndtr(nodes))


_INF = math.inf
_RELU_ZEROS, _HARD_ZEROS, _KERAS2_ZEROS = 0.5, 0.0013499, 0.0062097  # N(0,1) below 0, -3, -2.5
# Columns: range, largest |slope| and where, slope and value at 0, |slope| far out, odd, monotone,
# share of zeros, width. At 95% of the range: sigmoid(ln 19), tanh(atanh 0.9), softsign(9).
ANALYTIC = {
    row[0]: Profile(*row)
    for row in [
        ("sigmoid", 0, 1, 1 / 4, 0, 1 / 4, 1 / 2, 0, False, True, 0, 2 * math.log(19)),
        ("tanh_gate", 0, 1, 1 / 2, 0, 1 / 2, 1 / 2, 0, False, True, 0, math.log(19)),
        ("softsign_gate", 0, 1, 1 / 2, 0, 1 / 2, 1 / 2, 0, False, True, 0, 18),
        ("relu_gate", 0, 1, 1, 0, 1 / 2, 0, 0, False, True, _RELU_ZEROS, 0.9),
        ("hard_sigmoid", 0, 1, 1 / 6, 0, 1 / 6, 1 / 2, 0, False, True, _HARD_ZEROS, 5.4),
        (
            "hard_sigmoid_keras2", 0, 1, 1 / 5, 0, 1 / 5, 1 / 2, 0, False, True,
            _KERAS2_ZEROS, 4.5,
        ),
        (
            "fast_gate", 0, 1, 0.27855, 0.9316, 1 / 4, 1 / 2, 0, False, True, 0,
            2 * math.asinh(math.log(19)),
        ),
        ("tanh", -1, 1, 1, 0, 1, 0, 0, True, True, 0, 2 * math.atanh(0.9)),
        ("softsign", -1, 1, 1, 0, 1, 0, 0, True, True, 0, 18),
        ("hard_tanh", -1, 1, 1, 0, 1, 0, 0, True, True, 0, 1.8),
        (
            "penalized_tanh", -1 / 4, 1, 1, 0, 5 / 8, 0, 0, False, True, 0,
            math.atanh(1 - 0.0625) + math.atanh(0.75),
        ),
        ("relu", 0, _INF, 1, 0, 1 / 2, 0, 1, False, True, _RELU_ZEROS, _INF),
        ("leaky_relu", -_INF, _INF, 1, 0, 0.6, 0, 1, False, True, 0, _INF),
        ("elu", -1, _INF, 1, 0, 1, 0, 1, False, True, 0, _INF),
        ("softplus", 0, _INF, 1, _INF, 1 / 2, math.log(2), 1, False, True, 0, _INF),
        ("min_gru_g", 0, _INF, 1, 0, 5 / 8, 1 / 2, 1, False, True, 0, _INF),
        ("linear", -_INF, _INF, 1, 0, 1, 0, 1, True, True, 0, _INF),
        ("exponential", 0, _INF, _INF, _INF, 1, 1, _INF, False, True, 0, _INF),
    ]
}  # fmt: skip
