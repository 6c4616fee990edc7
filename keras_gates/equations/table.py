"""What a row of the table of operations is, and the table, which `operations` fills."""

import dataclasses
from collections.abc import Callable

# How tightly operators bind in text: sums, products, signs, powers, calls.
SUM, PRODUCT, SIGN, POWER, CALL = range(5)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One row.

    Attributes:
        name: of the row.
        numpy: its value, of float64 arrays (rows, units) and its parameters by name. None: that
            of `expand`.
        pull: reverse-mode derivative, from its result y and the gradient d at it to one gradient
            per argument, all of them values; None for an argument that has none. Without `pull`,
            the derivative is that of `expand`.
        expand: the same out of simpler rows: from the result y to a value.
        onnx: the ONNX operator, and from its attributes to parameters. None: that of `expand`.
        keras: from names of classes of `keras.Operation` to those of their attributes that are
            parameters, in order of the names in `parameters`.
        parameters: names of the parameters.
        text, latex: how it is written, with {0} for the first argument and {name} for a parameter.
        level: how tightly that binds.
        reduces: whether it makes one column of all, over units; None: it makes all of one.
        simpler: from the arguments to what it simplifies to, or None.
        alias: whether programs hold what it expands to, and never the row itself.
    """

    name: str
    numpy: Callable | None = None
    pull: Callable | None = None
    expand: Callable | None = None
    onnx: tuple | None = None
    keras: dict = dataclasses.field(default_factory=dict)
    parameters: tuple = ()
    text: str = ""
    latex: str = ""
    level: int = CALL
    reduces: bool | None = False
    simpler: Callable | None = None
    alias: bool = False


TABLE: dict[str, Operation] = {}
