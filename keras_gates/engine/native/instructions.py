"""From values to instructions for the kernel: where each lies, and in what order."""

import collections
import dataclasses

import numpy as np

from keras_gates.engine.native import library
from keras_gates.equations import TABLE
from keras_gates.equations.operations import UNITS
from keras_gates.equations.values import number_of, ordered
from keras_gates.equations.values import value as interned

_PRODUCTS = {"recurrent": "PRODUCT", "recurrent_transposed": "TRANSPOSED"}
# Operations that read their arguments after they began to write.
_APART = ("sparsemax_gradient",)


@dataclasses.dataclass
class Code:
    """Instructions for one direction; see `kernel.h` for each of the arrays."""

    places: np.ndarray
    code: np.ndarray
    part: np.ndarray
    constants: np.ndarray
    weights: tuple  # names of weights, or arrays of one number per unit
    register: dict  # from a pair (place, index) to its number
    # Of each block, where `x W_k + b_k` and `h U_k + c_k` go to, or -1.
    input_register: list = dataclasses.field(default_factory=list)
    projected_register: list = dataclasses.field(default_factory=list)


def _fused(targets, stops):
    """The same targets, with products that are only added to something as one operation."""
    order = ordered([value for value, _ in targets], stops)
    uses = collections.Counter(id(a) for v in order for a in v.arguments)
    uses.update(id(value) for value, _ in targets)
    done: dict = {}

    def is_single(v):
        return v.operation == "multiply" and id(v) not in stops and uses[id(v)] == 1

    def rewritten(v):
        a, b = v.arguments
        if v.operation == "add" and is_single(a):
            return "multiply_add", (*a.arguments, b)
        if v.operation == "add" and is_single(b):
            return "multiply_add", (*b.arguments, a)
        if v.operation == "subtract" and is_single(b):
            return "subtract_product", (*b.arguments, a)
        return v.operation, v.arguments

    for v in order:
        if id(v) in stops or not v.arguments:
            done[id(v)] = v
            continue
        operation, arguments = rewritten(v) if len(v.arguments) == 2 else (v.operation, v.arguments)
        arguments = tuple(done[id(a)] for a in arguments)
        done[id(v)] = interned(operation, arguments, v.parameters, v.rows, v.wide)
    return [(done[id(value)], place) for value, place in targets]


def assemble(targets, given, blocks, units):
    """The `Code` that computes values.

    Args:
        targets: pairs of a value and the place, (name, index), where it is to be.
        given: from values that are there already to their places.
        blocks: names of the blocks of the weights.
        units: how many there are.
    """
    return _Assembler(targets, given, blocks, units).done()


class _Assembler:
    def __init__(self, targets, given, blocks, units):
        self.units = units
        self.register, self.places, self.constants, self.weights = {}, [], {}, []
        self.code, self.parts, self.locals = [], [], 0
        self.given = {id(value): place for value, place in given.items()}
        stops = set(self.given)
        targets = _fused(targets, stops)
        order = [v for v in ordered([v for v, _ in targets], stops) if self._is_computed(v)]
        self.place = {}  # of values that lie in a tile, and not in scratch
        self.copies = []
        for value, place in targets:
            if self._is_computed(value) and id(value) not in self.place:
                self.place[id(value)] = place
            else:
                self.copies.append((value, place))
        self.last, segment = self._uses(order), {}
        now = 0
        for v in order:
            now += v.operation in _PRODUCTS
            segment[id(v)] = now
            for a in v.arguments:
                crosses = v.operation in _PRODUCTS or segment.get(id(a), now) != now
                if self._is_computed(a) and crosses:
                    self._put_in_a_tile(a)
            if v.operation in _PRODUCTS:
                self._put_in_a_tile(v)
        self.scratch, self.numbers = [], 0
        self.at = {}  # from the id of a value to its register
        start = 0
        for position, v in enumerate(order):
            if v.operation in _PRODUCTS:
                start = self._end_part(start)
                kind = library.KINDS.index(_PRODUCTS[v.operation])
                block = blocks.index(v["block"])
                self.parts.append((kind, block, self._of(v.arguments[0]), self._to(v, position)))
            else:
                self._emit(v, position)
        for value, place in self.copies:
            self._instruction("identity", self._register(*place), [self._of(value)])
        self._end_part(start)

    def _is_computed(self, value):
        return bool(value.arguments) and id(value) not in self.given

    def _put_in_a_tile(self, value):
        if id(value) not in self.place:
            self.place[id(value)] = ("LOCAL", self.locals)
            self.locals += 1

    def _uses(self, order):
        """From the id of each value to the position of its last use."""
        last = {id(v): p for p, v in enumerate(order)}
        for position, v in enumerate(order):
            for a in v.arguments:
                last[id(a)] = position
        for value, _ in self.copies:
            last[id(value)] = len(order)
        return last

    def _emit(self, v, position):
        row = TABLE[v.operation]
        operands = [self._of(a) for a in v.arguments]
        operands += [self._constant(v[name]) for name in row.parameters]
        to = self._to(v, position) if v.operation in _APART else None
        for a in {id(a): a for a in v.arguments}.values():
            is_scratch = self._is_computed(a) and id(a) not in self.place
            if is_scratch and self.last[id(a)] == position:
                self.scratch.append(self.at[id(a)])
        to = self._to(v, position) if to is None else to
        self._instruction(v.operation, to, operands)

    def _instruction(self, operation, to, operands):
        number = library.operations()[operation]
        self.code.append((number, to, *operands, *[operands[0]] * (3 - len(operands))))

    def _end_part(self, start):
        if len(self.code) > start:
            self.parts.append((0, start, len(self.code), 0))
        return len(self.code)

    def _to(self, value, position):
        """The register that a value is computed into."""
        if id(value) in self.place:
            self.at[id(value)] = self._register(*self.place[id(value)])
        elif self.scratch:
            self.at[id(value)] = self.scratch.pop()
        else:
            self.at[id(value)] = self._register("SCRATCH", self.numbers)
            self.numbers += 1
        return self.at[id(value)]

    def _of(self, value):
        """The register that a value lies in."""
        if id(value) in self.at:
            return self.at[id(value)]
        if id(value) in self.given:
            return self._register(*self.given[id(value)])
        if value is UNITS:
            return self._constant(self.units)
        if value.operation == "constant":
            number = number_of(value)
            return self._weight(value["array"]) if number is None else self._constant(number)
        if value.operation == "input" and value["kind"] == "weight":
            return self._weight(value["name"])
        raise AssertionError(f"{value} is not there")

    def _constant(self, number):
        # -0.0 is another number than 0.0 here.
        index = self.constants.setdefault(float(number).hex(), len(self.constants))
        return self._register("CONSTANT", index)

    def _weight(self, name):
        if name not in self.weights:
            self.weights.append(name)
        return self._register("WEIGHT", self.weights.index(name))

    def _register(self, place, index):
        key = (place, index)
        if key not in self.register:
            self.register[key] = len(self.places)
            self.places.append((library.PLACES.index(place), index))
        return self.register[key]

    def done(self):
        return Code(
            np.array(self.places, "int32").reshape(-1, 2),
            np.array(self.code, "int32").reshape(-1, 5),
            np.array(self.parts, "int32").reshape(-1, 4),
            np.array([float.fromhex(number) for number in self.constants], "float64"),
            tuple(self.weights),
            self.register,
        )
