"""Programs as text and as LaTeX, in the symbols of the papers."""

from keras_gates.equations.table import CALL, PRODUCT, SUM, TABLE
from keras_gates.equations.values import ordered

# Of states, blocks and weights; a cell's class attribute `symbols` has precedence.
_SYMBOLS = {
    "hidden": "h", "cell": "c", "update": "z", "reset": "r", "input": "i", "forget": "f",
    "output": "o", "candidate": "n",
}  # fmt: skip


def symbol_of(name, symbols=None):
    """The symbol of a block, a state or a weight."""
    return {**_SYMBOLS, **(symbols or {})}.get(name, name)


class _Writer:
    """Writes values, with names for those that have one.

    Args:
        symbols: from names of states and blocks to symbols, beside `_SYMBOLS`.
        latex: whether to write LaTeX.
        names: from the id of a value to the symbol that stands for it.
        normalized: pairs of a value after and before layer normalization, which is written `L`.
    """

    def __init__(self, symbols=None, latex=False, names=None, normalized=()):
        self.symbols, self.latex = symbols, latex
        self.normalized = {id(after): before for after, before in normalized}
        self.names = {} if names is None else names

    def symbol(self, name):
        found = symbol_of(name, self.symbols)
        if self.latex and len(found) > 1:
            return rf"\mathit{{{found}}}"
        return found

    def __call__(self, value, level=SUM, right=False):
        """The expression of a value, in brackets if it binds less than `level`."""
        if id(value) in self.names:
            return self.names[id(value)]
        if id(value) in self.normalized:
            return f"L({self(self.normalized[id(value)])})"
        if value.operation == "clip_gradient":  # which is no part of the equation
            return self(value.arguments[0], level, right)
        if value.operation == "input":
            return self._leaf(value)
        if value.operation == "constant":
            return self._constant(value, level)
        row = TABLE[value.operation]
        own = row.level if row.text != "{0}" else level
        inner = own if own != CALL else SUM
        bare = own == CALL or (self.latex and "frac" in row.latex)
        parts = [
            self(argument, SUM if bare else inner, right=not bare and index > 0)
            for index, argument in enumerate(value.arguments)
        ]
        parameters = {k: _number(v) for k, v in value.parameters}
        if "block" in parameters:
            parameters["block"] = self.symbol(parameters["block"])
        text = (row.latex if self.latex else row.text).format(*parts, **parameters)
        # The right side of a difference or quotient needs brackets already at its own level.
        if own < level or (right and own == level and own in (SUM, PRODUCT)):
            return rf"\left({text}\right)" if self.latex else f"({text})"
        return text

    def _leaf(self, value):
        kind, name = value["kind"], value["name"]
        if kind == "state":
            return self.symbol(name)
        if kind in ("x", "u"):
            symbol = self.symbol(name)
            return f"{kind}_{{{symbol}}}" if self.latex else f"{kind}_{symbol}"
        return self.symbol(name)

    def _constant(self, value, level):
        number = dict(value.parameters).get("number")
        if number is None:
            return "constants"
        text = _number(number)
        return f"({text})" if number < 0 and level > SUM else text


def equations(program, symbols=None, latex=False):
    """The equations of a program: a list of pairs (symbol, expression), in the order computed.

    Gates, the candidate and the states after the step have a line each; x_k stands for
    x W_k + b_k and u_k for h U_k + c_k.
    """
    names, lines = {}, []
    writer = _Writer(symbols, latex, names, program.normalized)
    entries = {id(v): (writer.symbol(n), v) for n, v in reversed(program.named)}
    for name, v in program.outputs:
        entries.setdefault(id(v), (f"{writer.symbol(name)}'", v))
    for value in ordered(v for _, v in (*program.named, *program.outputs)):
        if id(value) in entries:
            symbol, _ = entries[id(value)]
            lines.append((symbol, writer(value)))
            names[id(value)] = symbol
    # A state that is a gate, or the candidate, or a state before.
    for name, v in program.outputs:
        symbol = f"{writer.symbol(name)}'"
        if symbol not in dict(lines):
            lines.append((symbol, writer(v)))
    return lines


def expression(value):
    """A value on one line."""
    return _Writer()(value)


def _number(value):
    return f"{value:.6g}" if isinstance(value, float) else str(value)
