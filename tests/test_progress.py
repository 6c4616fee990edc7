"""Bars: of what they are, when they are shown, and when not."""

import contextlib
import io
import re

import keras
import pytest

import keras_gates as kg
from keras_gates import diagnostics, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(act, stream=None):
    """What is printed, on a terminal or another stream."""
    stream = Terminal() if stream is None else stream
    with contextlib.redirect_stdout(stream):
        act()
    return stream.getvalue()


def two_of(steps, *arguments, **options):
    with progress.bar(steps, *arguments, **options) as advance:
        advance()
        advance()


def counts(text):
    """How many steps of how many were done at each update: Keras puts colours between them."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    return [tuple(map(int, pair)) for pair in re.findall(r"(\d+)/(\d+)", plain)]


def model():
    return keras.Sequential([keras.Input((None, 2), name="x"), kg.GatedRNN(2)])


def test_auto_shows_a_bar_on_a_terminal_alone():
    found = counts(shown(lambda: two_of(2, "auto")))
    assert (found[0], found[-1]) == ((0, 2), (2, 2))
    assert not shown(lambda: two_of(2, "auto"), io.StringIO())
    with contextlib.redirect_stdout(None):  # as in a program without a console
        two_of(2, "auto")


def test_one_shows_it_anywhere_and_zero_nowhere():
    assert not shown(lambda: two_of(2, 0))
    text = shown(lambda: two_of(2, 1, "pair"), io.StringIO())
    assert counts(text)[-1] == (2, 2)
    assert "/pair" in text


def test_what_ends_soon_has_no_bar(monkeypatch):
    assert not shown(lambda: two_of(2, "auto", patience=60.0))
    times = iter([0.0, 0.1, 1.9, 2.1])  # at the beginning, before the first step, after each
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    assert counts(shown(lambda: two_of(3, "auto", patience=2.0))) == [(2, 3)]


def test_an_error_leaves_the_line_of_the_bar():
    def fail():
        with progress.bar(3, 1):
            raise KeyError

    stream = Terminal()
    with pytest.raises(KeyError):
        shown(fail, stream)
    assert counts(stream.getvalue()) == [(0, 3)]
    assert stream.getvalue().endswith("\n")


def test_nothing_to_do_has_no_bar():
    assert not shown(lambda: progress.bar(0, 1).__enter__())


@pytest.mark.slow
def test_export_counts_writing_running_and_comparing(tmp_path, quick):
    found = counts(shown(lambda: kg.export(model(), tmp_path / "model", verbose=1)))
    assert (found[0], found[-1]) == ((0, 3), (3, 3))


def test_plot_verdicts_counts_pairs():
    pytest.importorskip("matplotlib")
    grid = ["sigmoid", "relu"], ["tanh", "relu", "elu"]
    assert counts(shown(lambda: diagnostics.plot_verdicts("gru", *grid, verbose=1)))[-1] == (6, 6)
    assert not shown(lambda: diagnostics.plot_verdicts("gru", *grid))


def test_other_values_are_refused(tmp_path):
    message = "`verbose` must be one of 'auto', 0, 1. Received: verbose=3"
    with pytest.raises(ValueError, match=message):
        kg.export(model(), tmp_path / "model", verbose=3)
    with pytest.raises(ValueError, match=message):
        diagnostics.plot_verdicts("gru", ["sigmoid"], ["tanh"], verbose=3)
    assert not list(tmp_path.iterdir())
