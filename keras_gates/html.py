"""HTML of reports, for notebooks and as files that need nothing else: no network, no script.

What is no `Html` is text, and is escaped. Colours are those of Okabe and Ito, and every one has a
word beside it.
"""

import base64
import html
import importlib.util
import io
import os
import pathlib

# Colours, and the signs that say the same in print.
_LEVELS = {
    "error": ("#D55E00", "✖"),
    "unstable": ("#D55E00", "✖"),
    "warning": ("#E69F00", "▲"),
    "caution": ("#E69F00", "▲"),
    "note": ("#0072B2", "●"),
    "sound": ("#009E73", "✔"),
}
_STYLE = """
.keras-gates { line-height: 1.45; }
.keras-gates h1 { font-size: 1.5em; }
.keras-gates h2 { font-size: 1.2em; margin: 1.6em 0 .4em; }
.keras-gates h3 { font-size: 1em; margin: 1.2em 0 .3em; }
.keras-gates p { margin: .4em 0; max-width: 48em; }
.keras-gates .wide { overflow-x: auto; margin: .5em 0; }
.keras-gates table { border-collapse: collapse; font-size: .9em; margin: 0; }
.keras-gates th, .keras-gates td { text-align: left; vertical-align: top; padding: .25em .7em;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, .4); white-space: nowrap; }
.keras-gates th { font-weight: 600; }
.keras-gates .number { text-align: right; font-variant-numeric: tabular-nums; }
.keras-gates .words { white-space: normal; min-width: 14em; max-width: 40em; }
.keras-gates .finding { border-left: .35em solid; padding: .1em 0 .1em .8em; margin: .7em 0; }
.keras-gates .level { font-weight: 600; white-space: nowrap; }
.keras-gates .lead { font-size: 1.1em; }
.keras-gates .faint { opacity: .75; font-size: .9em; }
.keras-gates .pictures { display: flex; flex-wrap: wrap; gap: .5em; }
.keras-gates img { max-width: 100%; height: auto; background: white; }
.keras-gates code, .keras-gates pre { font-family: ui-monospace, monospace; font-size: .9em; }
.keras-gates pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .5em 0; }
.keras-gates summary { cursor: pointer; }
"""
_PAGE_STYLE = """
body { font-family: system-ui, sans-serif; color: #111; background: white; margin: 0 auto;
  padding: 1em; max-width: 62em; overflow-wrap: anywhere; }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt; }
  .keras-gates .wide { overflow: visible; }
  .keras-gates img { max-width: 100% !important; }
  .keras-gates table { font-size: 8pt; }
  .keras-gates th, .keras-gates td { white-space: normal; padding: .15em .4em; }
  .keras-gates .words { min-width: 0; }
  .keras-gates table, .keras-gates img, .keras-gates .finding { break-inside: avoid; }
  .keras-gates h2, .keras-gates h3 { break-after: avoid; }
}
"""


_BROAD = 4.0  # inches: what is wider can be scrolled on a phone, and is not made smaller


class Html(str):
    """A piece of HTML, in which all that is text has been escaped."""


def element(name, *inside, **attributes):
    """An element; None among what is inside is left out. `class_` is the attribute class.

    >>> element("p", "a < b", class_="faint")
    '<p class="faint">a &lt; b</p>'
    """
    given = "".join(
        f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{joined(inside)}</{name}>")


def joined(parts):
    """Pieces of HTML and texts, one behind the other."""
    return Html("".join(_escaped(part) for part in parts if part is not None))


def table(header, rows, words=()):
    """A table that can be scrolled by itself. Columns of figures are aligned at the right.

    Args:
        header: names of the columns.
        rows: lists of as many entries.
        words: names of the columns that hold sentences.
    """
    rows = [list(row) for row in rows]
    classes = []
    for i, name in enumerate(header):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        classes.append("words" if name in words else "number" if numeric else "text")
    head = [element("th", n, scope="col", class_=c) for n, c in zip(header, classes, strict=True)]
    body = [
        element("tr", *[element("td", v, class_=c) for v, c in zip(row, classes, strict=True)])
        for row in rows
    ]
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", whole, class_="wide", tabindex="0")


def level(name):
    """A level or severity: its sign, and its name."""
    color, sign = _LEVELS[name]
    return element(
        "span", element("span", sign, style=f"color: {color}"), " ", name, class_="level"
    )


def finding(name, what, advice=None):
    """What was found, how bad it is, and what to do."""
    style = f"border-color: {_LEVELS[name][0]}"
    cure = None if advice is None else element("p", advice)
    return element(
        "div", element("p", level(name), ": ", what), cure, class_="finding", style=style
    )


def picture(draw, description, size=(3.1, 2.4)):
    """What `draw(axes)` draws, as an image in the page: what is in an image runs no script.

    Args:
        draw: function of axes of matplotlib, in a figure that no other part of the program sees.
        description: in words, for those who do not see it.
        size: width and height, in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = io.BytesIO()
    rc = {"svg.fonttype": "none", "svg.hashsalt": "keras_gates", "font.size": 8}
    with mpl.rc_context({**rc, "axes.titlesize": 9}):
        figure = Figure(size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    broad = size[0] > _BROAD
    style = f"width: {size[0]:g}in" + ("; max-width: none" if broad else "")
    # Without a closing tag, as HTML has it of an image.
    image = Html(f'<img src="{source}" alt="{html.escape(description)}" style="{style}">')
    return element("div", image, class_="wide", tabindex="0") if broad else image


def can_draw():
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def without_pictures():
    """What stands where pictures would be, where matplotlib is not installed."""
    return element(
        "p", 'With matplotlib there are pictures here: pip install "keras_gates[plots]"',
        class_="faint",
    )  # fmt: skip


def block(*inside):
    """What a notebook shows."""
    return str(element("div", element("style", Html(_STYLE)), *inside, class_="keras-gates"))


def check_path(path, argument="path"):
    """Raises an error where no page can be written."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`{argument}` must be a path. Received: {argument}={path!r}")
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"the folder that `{argument}` is in must exist. Received: {argument}={str(path)!r}"
        )


def write(path, title, inside):
    """Writes a page of an iterable of what is on it, which is not looked at if `path` is bad.

    Raises:
        As `check_path`.
    """
    check_path(path)
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = [
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'),
        element("title", title),
        element("style", Html(_STYLE + _PAGE_STYLE)),
    ]
    body = element("main", element("h1", title), *inside, class_="keras-gates")
    page = element("html", element("head", *head), element("body", body), lang="en")
    pathlib.Path(path).write_text(f"<!DOCTYPE html>\n{page}\n", encoding="utf-8")


def _escaped(value):
    return value if isinstance(value, Html) else html.escape(str(value))


def _is_number(value):
    """Whether an entry is a figure, or stands for one that is not there."""
    text = str(value).strip().removeprefix("x ").rstrip("%")
    if text in ("", "-"):
        return True
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
