"""Errors of a training, for the record."""

import pathlib
import traceback


def described(error):
    """An error in one line: what it is, what it says in the end, and where it was raised."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    # TensorFlow puts the operations of the graph between its first line and what was wrong.
    known = ("File ", "Detected at ", "[[{{node", "Stack trace")
    lines = [line for line in map(str.strip, lines) if line and not line.startswith(known)]
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not {"site-packages", "keras_gates"} & set(pathlib.Path(frame.filename).parts)
    ]
    where = f" ({pathlib.Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return " ".join(lines) + where
