"""What these pages need beside Sphinx: docstrings as they are written, and equations from programs.

Docstrings are plain text with `names` in backticks and indented equations; here they become
reStructuredText. The directive `cell-equations` writes a section per cell, with the equations of
its program. Mathematics is MathML, which browsers show by themselves.
"""

import functools
import importlib
import inspect
import itertools
import re

from docutils import nodes
from docutils.parsers.rst import Directive
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref

import keras_gates
from keras_gates.activations import name_of
from keras_gates.cells import CELLS, GatedCell
from keras_gates.cells.program import traced
from keras_gates.equations import equations

PACKAGES = ("", "activations", "checks", "deployment", "diagnostics", "tuning")

# ---------------------------------------------------------------------- docstrings


@functools.cache
def places():
    """From the name of everything public to where the reference has it."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(f"keras_gates.{package}".rstrip("."))
        for name in module.__all__:
            if not inspect.ismodule(getattr(module, name)):
                found.setdefault(name, f"{module.__name__}.{name}")
    return found


class _Prose(str):
    """A line in which backticks are markup."""


def restructured(lines):
    """The lines of a docstring as reStructuredText."""
    done, fenced, literal = [], False, False
    for index, line in enumerate(lines):
        if line.startswith("```"):
            fenced = not fenced
            done += [f".. code-block:: {line[3:] or 'text'}", ""] if fenced else [""]
        elif fenced:
            done.append(f"    {line}")
        else:
            begins = _begins_literal(lines, index)
            literal = begins or (literal and line[:1] in ("", " "))
            done += [".. code-block:: text", ""] if begins else []
            done.append(line if literal or _in_example(lines, index) else _Prose(line))
    return _inline(done)


def _begins_literal(lines, index):
    """Whether equations or commands begin here: indented, after an empty line and text that is not,
    which the content of a section is not."""
    before = [line for line in lines[:index] if line.strip()]
    indented = lines[index].startswith("    ")
    return bool(indented and before and before[-1][0] != " " and not lines[index - 1].strip())


def _in_example(lines, index):
    """Whether it is of a doctest: of the input, or of the output below it."""
    while index >= 0 and lines[index].strip():
        if lines[index].strip().startswith(">>>"):
            return True
        index -= 1
    return False


def _inline(lines):
    """Prose with its backticks as reStructuredText; they may go over the end of a line."""
    done = []
    for is_prose, group in itertools.groupby(lines, lambda line: isinstance(line, _Prose)):
        group = list(group)
        done += _marked("\n".join(group)).split("\n") if is_prose else group
    return done


def _marked(text):
    parts = re.split(r"(`+[^`]+`+\w*)", text)
    return "".join(_code(p) if p.startswith("`") else _escaped(p) for p in parts)


def _code(part):
    name, _, ending = part.strip("`").partition("`")
    # As in "`Sample`s": markup ends at the end of a word, or at this.
    ending = f"\\ {ending}" if ending else ""
    short = name.rpartition(".")[2]
    if name.replace("keras_gates.", "").rpartition(".")[0] in PACKAGES and short in places():
        return f":py:obj:`{name} <{places()[short]}>`{ending}"
    return f"``{name}``{ending}"


def _escaped(text):
    return re.sub(r"(?<![\\*])([*|])(?!\*)", r"\\\1", re.sub(r"_(?=\W|$)", r"\\_", text))


def of_docstring(app, what, name, found, options, lines):
    lines[:] = restructured(lines)


def of_signature(app, what, name, found, options, signature, returned):
    """That of a class, which Keras' own `__new__` would hide."""
    if what != "class":
        return None
    signature = inspect.signature(found)
    shown = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    if issubclass(found, GatedCell) and found is not GatedCell:
        # What all cells take is where GatedCell is.
        shared = set(inspect.signature(GatedCell).parameters) - {"units"}
        shown = [p for p in shown if p.name not in shared]
        shown.append(inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD))
    return str(signature.replace(parameters=shown, return_annotation=signature.empty)), None


# ---------------------------------------------------------------------- equations


class CellEquations(Directive):
    """A section per cell."""

    def run(self):
        return [self._section(name, kind) for name, kind in CELLS.items()]

    def _section(self, name, kind):
        cell, program = traced(kind(1))
        lines = equations(program, cell.symbols, latex=True)
        aligned = r" \\ ".join(f"{symbol} &= {value}" for symbol, value in lines)
        summary, _, text = inspect.getdoc(kind).partition("\n")
        section = nodes.section(ids=[name.replace("_", "-")], names=[name])
        section += nodes.title("", f"{name}: {summary.partition(', one time step')[0].rstrip('.')}")
        section += self._about(cell)
        section += _math(rf"\begin{{align*}} {aligned} \end{{align*}}")
        if source := re.search(r"^(Sources?: .*?)(\n\n|\Z)", text, re.S | re.M):
            section += nodes.paragraph("", source[1].replace("\n", " "))
        self.state.document.note_implicit_target(section, section)
        return section

    def _about(self, cell):
        """The class, its gates, and the activations that it has by default."""
        kind = type(cell).__name__
        reference = pending_xref(
            refdomain="py",
            reftype="class",
            reftarget=f"keras_gates.{kind}",
            refdoc=self.state.document.settings.env.docname,
        )
        reference += nodes.literal("", kind)
        gates = " and ".join(sorted({name_of(a) for a in cell.gate_activations.values()}))
        names = ", ".join(cell.gate_activations)
        of_gates = f"gates {names}, with {gates} by default; " if gates else "no gates; "
        candidate = name_of(cell.candidate_activation)
        text = nodes.Text(f": {of_gates}the candidate with {candidate}.")
        return nodes.paragraph("", "", reference, text)


def _math(latex):
    return nodes.math_block("", latex, nowrap=True, number=None, label=None)


def inline_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator, node):
    translator.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app):
    # Before napoleon, which looks for the sections.
    app.connect("autodoc-process-docstring", of_docstring, priority=100)
    app.connect("autodoc-process-signature", of_signature)
    app.add_directive("cell-equations", CellEquations)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    return {"version": keras_gates.__version__, "parallel_read_safe": True}
