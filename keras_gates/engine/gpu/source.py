"""The kernels as text, in the language Triton, for the plan of a cell.

A cell's values become lines, between loads and stores that are the same for all cells. What these
call is in `triton.py`.
"""

import itertools

from keras_gates.engine.gpu.plan import CHUNK, ROWS, padded
from keras_gates.equations import TABLE
from keras_gates.equations.values import number_of, ordered

# From an operation to text. Others are Triton's own, or functions of the same name in `triton.py`.
_INFIX = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "greater": ">", "less": "<",
    "greater_equal": ">=", "less_equal": "<=", "equal": "==", "logical_and": "&", "logical_or": "|",
}  # fmt: skip
_TRITONS = ("where", "abs", "floor", "sqrt", "rsqrt", "exp", "log", "sin", "cos", "erf")


def forward(plan, arrays, kept):
    """The source of the kernel that runs all time steps.

    Args:
        plan: a `Plan`.
        arrays: from names to how many arrays of it the kernel is given: see `pallas.Kernels`.
        kept: of how many states all steps are written.

    Returns:
        The source of a function `kernel(time, batch, *arrays)`, the arrays in the order given, then
        those of "steps", "last" and "scratch".
    """
    arrays = {**arrays, "steps": kept, "last": arrays["states"], "scratch": len(plan.columns) > 0}
    text, step = _Text(plan, arrays), plan.step
    leaves = [*step.states, *step.sums]
    for i, leaf in enumerate(leaves):
        text.add(f"state{i} = {text.load('states', i, leaf)}")
    text.add("for t in range(time):", "    at = tl.cast(t, tl.int64) * batch")
    text.indent = "    "
    text.at_step()
    names = {leaf: f"state{i}" for i, leaf in enumerate(leaves)}
    text.names.update(names)
    products = text.products("state0", plan.projected) if step.u else []
    text.names.update(zip(step.u, products, strict=True))
    after = text.run(step.outputs)
    # None is written before all are computed.
    for i, (leaf, value) in enumerate(zip(leaves, after, strict=True)):
        text.add(f"after{i} = {text.of_shape(value, leaf)}")
    for i in range(len(leaves)):
        chosen = f"tl.where(valid, after{i}, state{i})" if arrays["valid"] else f"after{i}"
        text.add(f"state{i} = {chosen}")
    for i in range(kept):
        text.store("steps", i, f"state{i}", leaves[i], "at")
    text.indent = ""
    for i, leaf in enumerate(leaves):
        text.store("last", i, f"state{i}", leaf)
    return text.done()


def backward(plan, arrays):
    """The source of the kernel of the gradients.

    Args:
        plan: a `Plan`.
        arrays: from names to how many arrays of it the kernel is given: see `pallas.Kernels`.

    Returns:
        The source of a function `kernel(time, batch, *arrays)`, the arrays in the order given, then
        those of "gradients", "d_states", "d_weights", "factors", "d_products" and "scratch".
    """
    products, step = len(plan.step.products), plan.step
    arrays = {
        **arrays,
        "gradients": len(plan.gradients),
        "d_states": arrays["states"],
        "d_weights": len(plan.learned),
        "factors": products,
        "d_products": products,
        "scratch": products > 0,
    }
    text = _Text(plan, arrays)
    leaves = [*step.states, *step.sums]
    for i, leaf in enumerate(leaves):
        text.add(f"d{i} = {text.load('d_last', i, leaf)}")
    for i, (_, d) in enumerate(plan.learned):
        text.add(f"d_weight{i} = tl.zeros(({ROWS}, {text.width(d)}), tl.float32)")
    text.add("for back in range(time):", "    at = tl.cast(time - 1 - back, tl.int64) * batch")
    text.indent = "    "
    if arrays["d_steps"]:
        text.add(f"d0 = d0 + {text.load('d_steps', 0, leaves[0], 'at')}")
    text.at_step()
    for i, leaf in enumerate(step.states):
        text.names[leaf] = text.define(text.load("before", i, leaf, "at"))
    for i, leaf in enumerate(step.u):
        text.names[leaf] = text.define(text.load("u", i, leaf, "at"))
    text.names.update({leaf: f"d{i}" for i, leaf in enumerate(step.d_after)})
    found = iter(text.run(plan.wanted))

    def next_one(like):
        value = text.of_shape(next(found), like)
        return text.define(f"tl.where(valid, {value}, 0.0)" if arrays["valid"] else value)

    for i in range(len(plan.gradients)):
        text.store("gradients", i, next_one(leaves[0]), leaves[0], "at")
    before = [
        "0.0" if d is None else next_one(leaf)
        for leaf, d in zip(leaves, step.d_before, strict=True)
    ]
    weights = [next_one(d) for _, d in plan.learned]
    for i, name in itertools.product(range(products), ("factors", "d_products")):
        text.store(name, i, next_one(leaves[0]), leaves[0], "at")
    text.add("tl.debug_barrier()")
    for index, column in zip(plan.of_u, plan.projected, strict=True):
        if index is not None:
            pulled = text.pull(text.pointer("gradients", index), column, "at")
            before[0] = text.define(f"{before[0]} + {pulled}")
    for i, leaf in enumerate(leaves):
        value = text.of_shape(before[i], leaf)
        text.add(f"d{i} = " + (f"tl.where(valid, {value}, d{i})" if arrays["valid"] else value))
    for i, d in enumerate(weights):
        text.add(f"d_weight{i} = d_weight{i} + {d}")
    text.indent = ""
    for i, leaf in enumerate(leaves):
        text.store("d_states", i, f"d{i}", leaf)
    for i, (_, d) in enumerate(plan.learned):
        text.store("d_weights", i, f"d_weight{i}", d)
    return text.done()


class _Text:
    """Lines of a kernel, and from values to the names that they have there."""

    def __init__(self, plan, arrays):
        self.plan, self.arrays, self.wide = plan, arrays, padded(plan.units)
        self.lines, self.indent, self.numbers = [], "", itertools.count()
        self.names: dict = {}
        self.add(
            f"row = (tl.program_id(0) * {ROWS} + tl.arange(0, {ROWS}))[:, None]",
            f"column = tl.arange(0, {self.wide})[None, :]",
            f"inside = (row < batch) & (column < {plan.units})",
            f"wide = tl.zeros(({ROWS}, {self.wide}), tl.float32)",
            f"narrow = tl.zeros(({ROWS}, 1), tl.float32)",
        )
        for i, vector in enumerate(plan.vectors):
            pointer = self.pointer("vectors", i)
            number = f"tl.load({pointer})"
            units = f"tl.load({pointer} + column, mask=column < {plan.units}, other=0.0)"
            self.names[vector] = self.define(units if vector.wide else number)

    # ------------------------------------------------------------------ lines

    def add(self, *lines):
        self.lines += [self.indent + line for line in lines]

    def define(self, expression):
        name = f"v{next(self.numbers)}"
        self.add(f"{name} = {expression}")
        return name

    def done(self):
        pointers = [
            self.pointer(name, i) for name, count in self.arrays.items() for i in range(int(count))
        ]
        head = f"def kernel(time, batch, {', '.join(pointers)}):"
        return "\n".join([head, *[f"    {line}" for line in self.lines], ""])

    def pointer(self, name, i):
        return f"{name}_{i}"

    def width(self, value):
        return self.wide if value.wide else 1

    # ------------------------------------------------------------------ reading and writing

    def _place(self, name, i, like, at):
        rows = f"({at} + row)" if at else "row"
        if not like.wide:
            return f"{self.pointer(name, i)} + {rows}", "row < batch"
        return f"{self.pointer(name, i)} + {rows} * {self.plan.units} + column", "inside"

    def load(self, name, i, like, at=""):
        place, mask = self._place(name, i, like, at)
        return f"tl.load({place}, mask={mask}, other=0.0).to(tl.float32)"

    def store(self, name, i, value, like, at=""):
        place, mask = self._place(name, i, like, at)
        self.add(f"tl.store({place}, {value}, mask={mask})")

    def of_shape(self, value, like):
        """A number, a column or a row as a tile."""
        return f"({value}) + {'wide' if like.wide else 'narrow'}"

    def at_step(self):
        """What a step is computed from in every direction."""
        step = self.plan.step
        if self.arrays["valid"]:
            self.add("valid = tl.load(valid_0 + at + row, mask=row < batch, other=0.0) > 0")
        for i, leaf in enumerate(step.x):
            self.names[leaf] = self.define(self.load("x", i, leaf, "at"))
        for i, leaf in enumerate(self.plan.kept):
            self.names[leaf] = self.define(self.load("kept", i, leaf, "at") + " > 0")

    # ------------------------------------------------------------------ products

    def products(self, value, columns):
        """`value U_k + c_k` of every block k; the columns of each begin there, in units."""
        found = []
        # Dropout may be different for every block.
        for group in [[c] for c in columns] if self.arrays["masks"] > 1 else [columns]:
            self._put_in_scratch(self.dropped(value, group[0]))
            for c in group:
                found.append(self.define(self._multiplied("scratch_0", "", 0, c)))
            self.add("tl.debug_barrier()")
        return [self._with_bias(name, c) for name, c in zip(found, columns, strict=True)]

    def _with_bias(self, product, column):
        if not self.arrays["biases"]:
            return product
        units = self.plan.units
        at = f"biases_0 + {column * units} + column"
        return self.define(f"{product} + tl.load({at}, mask=column < {units}, other=0.0)")

    def _put_in_scratch(self, value):
        self.add(f"tl.store(scratch_0 + row * {self.plan.units} + column, {value}, mask=inside)")
        self.add("tl.debug_barrier()")

    def pull(self, pointer, column, at=""):
        """dL/dh, of what lies there, the gradient at `h U_k`."""
        product = self._multiplied(pointer, at, column, 0, "transposed_0")
        return self.define(self.dropped(product, column))

    def dropped(self, value, column):
        count = self.arrays["masks"]
        if not count:
            return value
        mask = self.load("masks", column if count > 1 else 0, self.plan.step.states[0])
        return f"({value}) * {mask}"

    def _multiplied(self, pointer, at, row, column, matrix="recurrent_kernel_0"):
        units, blocks = self.plan.units, len(self.plan.columns)
        stride = units * (blocks if matrix == "recurrent_kernel_0" else 1)
        start = row * units * stride + column * units
        left = f"{pointer} + {at} * {units}" if at else pointer
        chunk = min(CHUNK, self.wide)
        return (
            f"multiplied({left}, {matrix} + {start}, row, batch, {units}, {stride}, {ROWS}, "
            f"{self.wide}, {chunk})"
        )

    # ------------------------------------------------------------------ equations

    def run(self, wanted):
        """The names of values, in lines that compute them."""
        found = {id(leaf): name for leaf, name in self.names.items()}
        for value in ordered(wanted, set(found)):
            if id(value) not in found:
                text = self._computed(value, [found[id(a)] for a in value.arguments])
                found[id(value)] = self.define(text) if value.arguments else text
        return [found[id(value)] for value in wanted]

    def _computed(self, value, arguments):
        operation = value.operation
        if operation == "constant":
            return _number(number_of(value))
        if operation == "input":  # the number of units
            return _number(self.plan.units)
        if operation == "recurrent":
            return self.products(*arguments, [self.plan.columns[value["block"]]])[0]
        if operation == "recurrent_transposed":
            self._put_in_scratch(f"{arguments[0]} + wide")
            found = self.pull("scratch_0", self.plan.columns[value["block"]])
            self.add("tl.debug_barrier()")
            return found
        if operation in ("sum", "max"):
            return f"{operation}_over({arguments[0]} + wide, column < {self.plan.units})"
        if operation in _INFIX:
            return f"{arguments[0]} {_INFIX[operation]} {arguments[1]}"
        if operation == "negative":
            return f"-{arguments[0]}"
        parameters = [_number(value[name]) for name in TABLE[operation].parameters]
        function = f"tl.{operation}" if operation in _TRITONS else operation
        return f"{function}({', '.join([*arguments, *parameters])})"


def _number(number):
    number = float(number)
    return repr(number) if abs(number) < float("inf") and number == number else f'float("{number}")'
