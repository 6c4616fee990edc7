"""The operations that programs are made of: one table, one row each.

A new elementwise function is one new row.
"""

import functools
import math
import operator

import keras
import numpy as np
from scipy import special

from keras_gates.equations.table import POWER, PRODUCT, SIGN, SUM, TABLE, Operation
from keras_gates.equations.values import apply, leaf, number_of, value

# The number of units, which means over them divide by.
UNITS = leaf("size", "units", rows=False, wide=False)


def _row(name, numpy=None, pull=None, expand=None, onnx=None, keras=None, **more):
    """Adds a row; by default the class in Keras is the name in CamelCase."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    keras = {camel: ()} if keras is None else keras
    if isinstance(keras, str):
        keras = {keras: ()}
    if isinstance(onnx, str):
        onnx = (onnx, {})
    parameters = more.setdefault("parameters", ())
    shown = ", ".join(["{0}", *(f"{{{p}}}" for p in parameters)])
    more.setdefault("text", f"{name}({shown})")
    more.setdefault("latex", rf"\operatorname{{{name.replace('_', chr(92) + '_')}}}({shown})")
    TABLE[name] = Operation(name, numpy, pull, expand, onnx, keras, **more)


def _infix(name, numpy, pull, onnx, keras, sign, level, latex=None, simpler=None):
    text = f"{{0}} {sign} {{1}}"
    _row(
        name, numpy, pull, onnx=onnx, keras=keras, text=text,
        latex=latex or f"{{0}} {sign} {{1}}", level=level, simpler=simpler,
    )  # fmt: skip


def _is(value, number):
    return number_of(value) == number


def where(condition, then, otherwise):
    return apply("where", condition, then, otherwise)


def _call(name):
    return functools.partial(apply, name)


sigmoid, tanh, exp, log, relu = map(_call, ("sigmoid", "tanh", "exp", "log", "relu"))
softplus, square, sqrt, sign, total = map(_call, ("softplus", "square", "sqrt", "sign", "sum"))
mean, minimum, maximum = map(_call, ("mean", "minimum", "maximum"))


def clip(x, low, high):
    return apply("clip", x, low=low, high=high)


# ---------------------------------------------------------------------- leaves

_row("input", keras={}, text="{name}", latex="{name}")
_row("constant", keras={}, text="{number}", latex="{number}")

# ---------------------------------------------------------------------- arithmetic

_infix(
    "add", np.add, lambda y, d: (d, d), "Add", "Add", "+", SUM,
    simpler=lambda a, b: b if _is(a, 0) else a if _is(b, 0) else None,
)  # fmt: skip
_infix(
    "subtract", np.subtract, lambda y, d: (d, -d), "Sub", "Subtract", "-", SUM,
    simpler=lambda a, b: a if _is(b, 0) else None,
)  # fmt: skip
_infix(
    "multiply", np.multiply, lambda y, d: (d * y.arguments[1], d * y.arguments[0]),
    "Mul", "Multiply", "*", PRODUCT, latex=r"{0} \odot {1}",
    simpler=lambda a, b: b if _is(a, 1) else a if _is(b, 1) else None,
)  # fmt: skip


def _pull_divide(y, d):
    share = d / y.arguments[1]
    return share, -(share * y)


_infix(
    "divide", np.divide, _pull_divide, "Div", {"Divide": (), "TrueDivide": ()}, "/", PRODUCT,
    latex=r"\frac{{{0}}}{{{1}}}", simpler=lambda a, b: a if _is(b, 1) else None,
)  # fmt: skip
_row(
    "negative", np.negative, lambda y, d: (-d,), onnx="Neg", text="-{0}", latex="-{0}", level=SIGN,
    simpler=lambda a: a.arguments[0] if a.operation == "negative" else None,
)  # fmt: skip


def _pull_power(y, d):
    base, exponent = y.arguments
    of_base = d * exponent * base ** (exponent - 1)
    return of_base, None if number_of(exponent) is not None else d * y * log(base)


_infix("power", np.power, _pull_power, "Pow", "Power", "**", POWER, latex="{0}^{{{1}}}")
_row(
    "abs", np.abs, lambda y, d: (d * sign(y.arguments[0]),), onnx="Abs",
    keras={"Abs": (), "Absolute": ()}, text="|{0}|", latex="|{0}|",
)  # fmt: skip
_row("sign", np.sign, lambda y, d: (None,), onnx="Sign")
_row("floor", np.floor, lambda y, d: (None,), onnx="Floor")
_row(
    "square", np.square, lambda y, d: (2 * d * y.arguments[0],),
    expand=lambda y: y.arguments[0] * y.arguments[0], text="{0}**2", latex="{0}^2", level=POWER,
)  # fmt: skip
_row("sqrt", np.sqrt, lambda y, d: (d / (2 * y),), onnx="Sqrt", latex=r"\sqrt{{{0}}}")
_row("rsqrt", expand=lambda y: 1 / sqrt(y.arguments[0]))
_row("reciprocal", np.reciprocal, lambda y, d: (-(d * y * y),), onnx="Reciprocal")
_row("exp", np.exp, lambda y, d: (d * y,), onnx="Exp", latex=r"\exp({0})")
_row("expm1", np.expm1, lambda y, d: (d * (y + 1),), expand=lambda y: exp(y.arguments[0]) - 1)
_row("log", np.log, lambda y, d: (d / y.arguments[0],), onnx="Log", latex=r"\log({0})")
_row(
    "log1p", np.log1p, lambda y, d: (d / (1 + y.arguments[0]),),
    expand=lambda y: log(1 + y.arguments[0]),
)  # fmt: skip
_row("sin", np.sin, lambda y, d: (d * apply("cos", y.arguments[0]),), onnx="Sin")
_row("cos", np.cos, lambda y, d: (-(d * apply("sin", y.arguments[0])),), onnx="Cos")
_row("sinh", np.sinh, lambda y, d: (d * apply("cosh", y.arguments[0]),), onnx="Sinh")
_row("cosh", np.cosh, lambda y, d: (d * apply("sinh", y.arguments[0]),), onnx="Cosh")
_row("arctan", np.arctan, lambda y, d: (d / (1 + square(y.arguments[0])),), onnx="Atan")
_row("arcsinh", np.arcsinh, lambda y, d: (d / sqrt(1 + square(y.arguments[0])),), onnx="Asinh")
_row(
    "erf", special.erf,
    lambda y, d: (d * exp(-square(y.arguments[0])) * (2 / math.sqrt(math.pi)),), onnx="Erf",
)  # fmt: skip

# ---------------------------------------------------------------------- choices


def _no_gradients(y, d):
    return None, None


for _name, _onnx, _sign in (
    ("greater", "Greater", ">"),
    ("greater_equal", "GreaterOrEqual", ">="),
    ("less", "Less", "<"),
    ("less_equal", "LessOrEqual", "<="),
    ("equal", "Equal", "=="),
):
    _infix(_name, getattr(np, _name), _no_gradients, _onnx, None, _sign, SUM)
_infix("logical_and", np.logical_and, _no_gradients, "And", None, "and", SUM)
_infix("logical_or", np.logical_or, _no_gradients, "Or", None, "or", SUM)
_row("logical_not", np.logical_not, lambda y, d: (None,), onnx="Not")
_row(
    "not_equal", expand=lambda y: apply("logical_not", apply("equal", *y.arguments)), alias=True,
)  # fmt: skip
_row(
    "where", np.where,
    lambda y, d: (None, where(y.arguments[0], d, 0), where(y.arguments[0], 0, d)), onnx="Where",
    text="({1} if {0} else {2})",
    latex=r"\begin{{cases}} {1} & {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
)  # fmt: skip


def _pull_extreme(holds):
    def pull(y, d):
        first = holds(*y.arguments)
        return where(first, d, 0), where(first, 0, d)

    return pull


for _name, _onnx, _holds in (
    ("maximum", "Max", lambda a, b: a >= b),
    ("minimum", "Min", lambda a, b: a <= b),
):
    _row(
        _name, getattr(np, _name), _pull_extreme(_holds), onnx=_onnx,
        text=f"{_name[:3]}({{0}}, {{1}})", latex=rf"\{_name[:3]}({{0}}, {{1}})",
    )  # fmt: skip


def _pull_clip(y, d):
    (x,) = y.arguments
    inside = apply("logical_and", x >= y["low"], x <= y["high"])
    return (where(inside, d, 0),)


_row(
    "clip", lambda x, low, high: np.clip(x, low, high), _pull_clip,
    expand=lambda y: minimum(maximum(y.arguments[0], y["low"]), y["high"]),
    keras={"Clip": ("x_min", "x_max")}, parameters=("low", "high"),
)  # fmt: skip
_row(
    "cast", lambda x, dtype: np.asarray(x, "bool" if dtype == "bool" else "float64"),
    lambda y, d: (d,), keras={"Cast": ("dtype",)}, parameters=("dtype",), text="{0}", latex="{0}",
)  # fmt: skip
for _name in ("zeros_like", "ones_like"):
    _row(_name, getattr(np, _name), lambda y, d: (None,), text="1" if "one" in _name else "0")
_row("stop_gradient", lambda x: x, lambda y, d: (None,), onnx="Identity")

# ---------------------------------------------------------------------- over units

_ROW_OF = {"axis": -1, "keepdims": True}


def _pull_max(y, d):
    first = apply("equal", y.arguments[0], y)
    return (where(first, d, 0) / total(where(first, 1, 0)),)


_row(
    "sum", lambda x: np.sum(x, axis=-1, keepdims=True), lambda y, d: (apply("broadcast", d),),
    onnx="ReduceSum", reduces=True, latex=r"\sum {0}",
)  # fmt: skip
_row("broadcast", keras={}, pull=lambda y, d: (total(d),), reduces=None, text="{0}", latex="{0}")
_row("mean", expand=lambda y: total(y.arguments[0]) / UNITS, onnx="ReduceMean", reduces=True)
_row(
    "variance", expand=lambda y: mean(square(y.arguments[0] - mean(y.arguments[0]))), reduces=True,
    keras="Var",
)  # fmt: skip
_row(
    "standard_deviation", expand=lambda y: sqrt(apply("variance", y.arguments[0])), reduces=True,
    keras="Std",
)  # fmt: skip
_row(
    "max", lambda x: np.max(x, axis=-1, keepdims=True), _pull_max, onnx="ReduceMax", reduces=True,
    keras={"Max": (), "Amax": ()},
)  # fmt: skip
_row("min", expand=lambda y: -apply("max", -y.arguments[0]), reduces=True)


def _softmax(y):
    powers = exp(y.arguments[0] - apply("max", y.arguments[0]))
    return powers / total(powers)


def _log_softmax(y):
    shifted = y.arguments[0] - apply("max", y.arguments[0])
    return shifted - log(total(exp(shifted)))


_row(
    "softmax", lambda x: special.softmax(x, axis=-1),
    lambda y, d: (y * (d - total(d * y)),), expand=_softmax, onnx="Softmax",
)  # fmt: skip
_row(
    "log_softmax", lambda x: special.log_softmax(x, axis=-1),
    lambda y, d: (d - exp(y) * total(d),), expand=_log_softmax, onnx="LogSoftmax",
)  # fmt: skip


def _layer_norm(y):
    """Ba, Kiros, Hinton, "Layer normalization", 2016; or the root mean square alone."""
    x, *gain_and_shift = y.arguments
    centred = x if y["rms"] else x - mean(x)
    epsilon = keras.config.epsilon() if y["epsilon"] is None else y["epsilon"]
    found = centred / sqrt(mean(square(centred)) + epsilon)
    for name, weight in zip("*+", gain_and_shift, strict=False):
        found = found * weight if name == "*" else found + weight
    return found


_row(
    "layer_norm", expand=_layer_norm, alias=True, parameters=("epsilon", "rms"),
    keras={"LayerNorm": ("epsilon", "rms_scaling")},
)  # fmt: skip
_row(
    "rms_norm", expand=lambda y: _layer_norm(
        value("layer_norm", y.arguments, (*y.parameters, ("rms", True)))
    ),
    alias=True, parameters=("epsilon",), keras={"RMSNorm": ("epsilon",)},
)  # fmt: skip


def _support(x):
    """Of Keras' sparsemax: which units, sorted, make up its threshold, and their partial sums."""
    z = -np.sort(-x, axis=-1)
    sums, count = np.cumsum(z, axis=-1), np.arange(1, x.shape[-1] + 1)
    return z - (sums - 1) / count > 0, sums


def _sparsemax(x):
    # Up to 3.15 Keras adds up all partial sums, where the paper takes the last.
    support, sums = _support(x)
    size = np.sum(support, **_ROW_OF)
    return np.maximum(x - (np.sum(np.where(support, sums, 0), **_ROW_OF) - 1) / size, 0)


def _sparsemax_gradient(x, d):
    size = np.sum(_support(x)[0], **_ROW_OF)
    rank = np.argsort(np.argsort(-x, axis=-1, kind="stable"), axis=-1)
    on = d * (_sparsemax(x) > 0)
    return on - np.sum(on, **_ROW_OF) * np.maximum(size - rank, 0) / size


_row("sparsemax_gradient", _sparsemax_gradient, keras={})
_row(
    "sparsemax", _sparsemax,
    lambda y, d: (apply("sparsemax_gradient", y.arguments[0], d),),
)  # fmt: skip

# ---------------------------------------------------------------------- activations


def _unary(name, numpy=None, slope=None, expand=None, onnx=None, keras=None, **more):
    """An activation, by its slope: a value of its own value y and of x."""
    pull = slope and (lambda y, d: (d * slope(y, y.arguments[0]),))
    wrapped = expand and (lambda y: expand(y.arguments[0], *[y[p] for p in more["parameters"]]))
    more.setdefault("parameters", ())
    _row(name, numpy, pull, wrapped, onnx, keras, **more)


def _of_its_sign(y, x, parameter):
    """What is positive where x is. Slopes are of y where they can be: it is at hand backward."""
    return y if y[parameter] >= 0 else x


_unary(
    "sigmoid", special.expit, lambda y, x: y * (1 - y), onnx="Sigmoid", latex=r"\sigma({0})",
)  # fmt: skip
_unary("tanh", np.tanh, lambda y, x: 1 - y * y, onnx="Tanh", latex=r"\tanh({0})")
_unary(
    "relu", lambda x: np.maximum(x, 0), lambda y, x: where(y > 0, 1, 0), onnx="Relu",
    latex=r"\operatorname{{relu}}({0})",
)  # fmt: skip
_unary("softplus", lambda x: np.logaddexp(0, x), lambda y, x: sigmoid(x), onnx="Softplus")
_unary(
    "softsign", lambda x: x / (1 + np.abs(x)), lambda y, x: square(1 - apply("abs", y)),
    onnx="Softsign",
)  # fmt: skip
_unary(
    "elu", lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    lambda y, x: where(_of_its_sign(y, x, "alpha") > 0, 1, y + y["alpha"]),
    onnx=("Elu", {"alpha": "alpha"}),
    keras={"Elu": ("alpha",)}, parameters=("alpha",),
)  # fmt: skip
_unary(
    "celu", lambda x, alpha: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha)),
    lambda y, x: where(x > 0, 1, exp(minimum(x, 0) / y["alpha"])),
    onnx=("Celu", {"alpha": "alpha"}), keras={"Celu": ("alpha",)}, parameters=("alpha",),
)  # fmt: skip
_ALPHA, _SCALE = 1.6732632423543772, 1.0507009873554805
_unary(
    "selu", lambda x: _SCALE * np.where(x > 0, x, _ALPHA * np.expm1(np.minimum(x, 0))),
    lambda y, x: where(y > 0, _SCALE, y + _SCALE * _ALPHA), onnx="Selu",
)  # fmt: skip
_unary(
    "leaky_relu", lambda x, slope: np.where(x > 0, x, slope * x),
    lambda y, x: where(_of_its_sign(y, x, "slope") > 0, 1, y["slope"]),
    onnx=("LeakyRelu", {"alpha": "slope"}),
    keras={"LeakyRelu": ("negative_slope",)}, parameters=("slope",),
)  # fmt: skip
_unary(
    "relu6", lambda x: np.clip(x, 0, 6),
    lambda y, x: where(apply("logical_and", y > 0, y < 6), 1, 0), expand=lambda x: clip(x, 0, 6),
)  # fmt: skip
_unary(
    "hard_sigmoid", lambda x: np.clip(x + 3, 0, 6) / 6,
    lambda y, x: where(apply("logical_and", y > 0, y < 1), 1 / 6, 0),
    expand=lambda x: apply("relu6", x + 3) / 6,
)  # fmt: skip
_unary("hard_tanh", expand=lambda x: clip(x, -1, 1))
_unary("hard_silu", expand=lambda x: x * apply("hard_sigmoid", x))
_unary("silu", expand=lambda x: x * sigmoid(x))
_unary("mish", expand=lambda x: x * tanh(softplus(x)))
_unary("log_sigmoid", expand=lambda x: -softplus(-x))
_unary("tanh_shrink", expand=lambda x: x - tanh(x))
_unary("sparse_sigmoid", expand=lambda x: clip((x + 1) / 2, 0, 1))
_unary(
    "sparse_plus",
    expand=lambda x: where(x <= -1, 0, where(x < 1, square(x + 1) / 4, x)),
)  # fmt: skip
_unary(
    "squareplus", expand=lambda x, b: (x + sqrt(square(x) + b)) / 2, keras={"Squareplus": ("b",)},
    parameters=("b",),
)  # fmt: skip


def _gelu(x, approximate):
    if approximate:
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + apply("erf", x / math.sqrt(2)))


_unary("gelu", expand=_gelu, keras={"Gelu": ("approximate",)}, parameters=("approximate",))
_unary(
    "soft_shrink", expand=lambda x, t: where(x > t, x - t, where(x < -t, x + t, 0)),
    keras={"SoftShrink": ("threshold",)}, parameters=("threshold",),
)  # fmt: skip
_unary(
    "hard_shrink", expand=lambda x, t: where(apply("abs", x) > t, x, 0),
    keras={"HardShrink": ("threshold",)}, parameters=("threshold",),
)  # fmt: skip
_unary(
    "threshold", expand=lambda x, t, low: where(x > t, x, low),
    keras={"Threshold": ("threshold", "default_value")}, parameters=("threshold", "low"),
)  # fmt: skip


def _relu_of_keras(x, slope, limit, threshold):
    """`keras.activations.relu` and `keras.layers.ReLU`, with all their arguments."""
    if limit is None and threshold == 0:
        return apply("leaky_relu", x, slope=slope) if slope else relu(x)
    above = where(x > threshold, x, 0) if threshold else relu(x)
    if limit is not None:
        above = clip(above, 0, limit)
    return above - slope * relu(threshold - x) if slope else above


_unary(
    "relu_of_keras", expand=_relu_of_keras,
    keras={"ReLU": ("negative_slope", "max_value", "threshold")},
    parameters=("slope", "limit", "threshold"), alias=True,
)  # fmt: skip

# ---------------------------------------------------------------------- of the cell itself

# `value U_k + c_k`, for a block k that the cell projects in the middle of its equations. Whoever
# evaluates a program supplies it, and its transpose.
_row(
    "recurrent", None,
    lambda y, d: (apply("recurrent_transposed", d, block=y["block"]),), keras={},
    parameters=("block",), text="({0}) U_{block}", latex="({0}) U_{{{block}}}",
)  # fmt: skip
_row(
    "recurrent_transposed", None, keras={}, parameters=("block",),
    text="({0}) U_{block}ᵀ", latex=r"({0}) U_{{{block}}}^\top",
)  # fmt: skip
# A value, whose gradient is clipped on its way back.
_row(
    "clip_gradient", lambda x, value, norm: x,
    lambda y, d: (
        apply("clip_value", d, bound=y["value"])
        if y["value"] is not None else apply("clip_norm", d, bound=y["norm"]),
    ),
    expand=lambda y: y.arguments[0], keras={}, parameters=("value", "norm"),
)  # fmt: skip
_row(
    "clip_value", None, expand=lambda y: clip(y.arguments[0], -y["bound"], y["bound"]), keras={},
    parameters=("bound",),
)  # fmt: skip


def clip_norm(gradients, bound):
    """Gradients (rows, units), together scaled to an L2 norm of at most `bound` in every row, like
    `gradients.clip_by_norm`."""
    sizes = [apply("abs", d) for d in gradients]
    largest = functools.reduce(maximum, [apply("max", size) for size in sizes])
    infinite = apply("equal", largest, math.inf)
    directions = [
        where(infinite, where(apply("equal", size, math.inf), sign(d), 0 * d),
              d / where(largest > 0, largest, 1))
        for d, size in zip(gradients, sizes, strict=True)
    ]  # fmt: skip
    length = sqrt(functools.reduce(operator.add, [total(square(d)) for d in directions]))
    inside, scale = largest * length <= bound, bound / length
    return [where(inside, d, e * scale) for d, e in zip(gradients, directions, strict=True)]


_row(
    "clip_norm", expand=lambda y: clip_norm([y.arguments[0]], y["bound"])[0], keras={},
    parameters=("bound",),
)  # fmt: skip

# Made of products and sums by who runs programs.
_row("multiply_add", lambda a, b, c: a * b + c, keras={}, text="{0} * {1} + {2}", level=SUM)
_row("subtract_product", lambda a, b, c: c - a * b, keras={}, text="{2} - {0} * {1}", level=SUM)

# A function that is known by its values alone: of one number each.
_row(
    "opaque", lambda x, function: function(x.ravel()).reshape(x.shape),
    lambda y, d: (d * apply("opaque_slope", *y.arguments, function=y["function"]),), keras={},
    parameters=("function",), text="{function}({0})", latex=r"\operatorname{{{function}}}({0})",
)  # fmt: skip
_SHIFT = 1e-4
_row(
    "opaque_slope",
    lambda x, function: (
        (function(x.ravel() + _SHIFT) - function(x.ravel() - _SHIFT)) / (2 * _SHIFT)
    ).reshape(x.shape),
    keras={}, parameters=("function",),
)  # fmt: skip

# From a class of `keras.Operation` to its row.
BY_KERAS_CLASS = {name: row for row in TABLE.values() for name in row.keras}
