"""What a report says, as text and as HTML: paragraphs, and tables with their notes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_gates import html


class Section(NamedTuple):
    """A table.

    Attributes:
        title: what it shows.
        rows: its rows, the header first.
        notes: how to read it.
        words: names of the columns that hold sentences.
    """

    title: str
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()
    words: Sequence[str] = ()


def as_text(paragraphs, sections):
    lines = list(paragraphs)
    for section in sections:
        lines += ["", section.title, *(f"  {note}" for note in section.notes)]
        rows = [[str(entry) for entry in row] for row in section.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def as_html(paragraphs, sections, heading="h3"):
    """Pieces for `html.block` and `html.write`; `heading`: the element of the titles."""
    for paragraph in paragraphs:
        yield html.element("p", paragraph, class_="lead")
    for section in sections:
        header, *rows = section.rows
        yield html.element(heading, section.title)
        yield html.table(header, rows, section.words)
        yield html.element("p", " ".join(section.notes), class_="faint") if section.notes else None
