"""A bar for what takes more than two seconds, by Keras' own convention `verbose=`."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import keras

from keras_gates.types import Verbose
from keras_gates.validation import one_of


def check_verbose(verbose: Verbose) -> None:
    one_of("verbose", verbose, ("auto", 0, 1))


@contextlib.contextmanager
def bar(
    steps: int, verbose: Verbose, unit: str = "step", patience: float = 0.0
) -> Iterator[Callable[[], None]]:
    """Yields a function that says that one step of so many is done.

    Args:
        steps: how many there are.
        verbose: 1 for a bar, 0 for none, "auto" for one where somebody looks: on a terminal or in
            a notebook.
        unit: what a step is called.
        patience: seconds; what ends before has no bar, where `verbose` is "auto".
    """
    check_verbose(verbose)
    if verbose == "auto":
        on_terminal = getattr(sys.stdout, "isatty", bool)()
        wanted = steps > 0 and (on_terminal or "ipykernel" in sys.modules)
    else:
        wanted, patience = steps > 0 and bool(verbose), 0.0
    progbar = keras.utils.Progbar(steps, verbose=int(wanted), unit_name=unit)
    began, done, shown = time.monotonic(), 0, False

    def show():
        nonlocal shown
        if wanted and time.monotonic() - began >= patience:
            progbar.update(done)
            shown = True

    def advance():
        nonlocal done
        done += 1
        show()

    show()
    try:
        yield advance
    finally:
        if shown and done < steps:
            print()  # the cursor is still in the line of the bar
