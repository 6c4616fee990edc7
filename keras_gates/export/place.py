"""Files that appear at their place complete, or not at all."""

import contextlib
import os
import pathlib
import tempfile


@contextlib.contextmanager
def aside(path):
    """A path to write to, beside `path`, whose contents take its place if all goes well.

    Whatever is written into the folder of the yielded path is moved into that of `path` at the
    end: a file, a folder, or several files of one format. What had those names before goes only
    then. If anything raises, nothing of it remains, and what was there before is untouched.
    """
    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        new, old = pathlib.Path(folder, "new"), pathlib.Path(folder, "old")
        new.mkdir()
        old.mkdir()
        yield new / path.name
        moved = []
        try:
            for entry in sorted(new.iterdir()):
                target = path.parent / entry.name
                moved.append(entry.name)
                if target.exists():
                    os.replace(target, old / entry.name)
                os.replace(entry, target)
        except BaseException:
            for name in moved:
                target = path.parent / name
                if not (new / name).exists():
                    os.replace(target, new / name)
                if (old / name).exists():
                    os.replace(old / name, target)
            raise
