"""What a converter in C++ prints on the terminal, whatever it is asked, and nobody can mend."""

import contextlib
import os
import re
import sys
import tempfile

# Lines of TensorFlow's log that are no errors, and one that LiteRT writes past every log.
_NOISE = re.compile(rb"WARNING: All log messages before absl|[IW]\d{4} |fully_quantize: ")
_ERROR = re.compile(rb"[EF]\d{4} ")


@contextlib.contextmanager
def without_noise():
    """While it lasts, what is written to the standard error is kept. Then all but noise comes out;
    where an exception has ended it, which says the rest, errors of the log alone.

    That is the stream of the process, which other threads write to as well.
    """
    sys.stderr.flush()
    try:
        terminal = os.dup(2)
    except OSError:  # a process that has none
        yield
        return
    with tempfile.TemporaryFile() as file:
        shown = _ERROR.match
        try:
            os.dup2(file.fileno(), 2)
            yield
            shown = lambda line: not _NOISE.match(line)  # noqa: E731
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            file.seek(0)
            for line in filter(shown, file):
                os.write(terminal, line)
            os.close(terminal)
