"""A cell's equations as data.

Everything between a cell's linear maps is traced once, symbolically, and becomes a program: a
record of values and operations that every part reads instead of running the cell's code.
"""

from keras_gates.equations.affine import affine
from keras_gates.equations.derivative import pulled
from keras_gates.equations.program import Program, depends_on, evaluate
from keras_gates.equations.table import TABLE, Operation
from keras_gates.equations.text import equations
from keras_gates.equations.trace import NotTraceableError
from keras_gates.equations.values import Value, apply, constant, leaf

__all__ = [
    "TABLE",
    "NotTraceableError",
    "Operation",
    "Program",
    "Value",
    "affine",
    "apply",
    "constant",
    "depends_on",
    "equations",
    "evaluate",
    "leaf",
    "pulled",
]
