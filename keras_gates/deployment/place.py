"""Files that appear at their place complete, or not at all."""

import contextlib
import os
import pathlib
import shutil
import socket
import tempfile


@contextlib.contextmanager
def atomic_write(path):
    """A path to write to, beside `path`, whose contents take its place if all goes well.

    Whatever is written into the folder of the yielded path is moved into that of `path` at the
    end: a file, a folder, or several files of one format. What had those names before goes only
    then. If anything raises, nothing of it remains, and what was there before is untouched. What a
    process has left behind that was killed is removed by the next that writes to the same path.
    """
    path = pathlib.Path(path)
    prefix = f".{path.name}.{socket.gethostname()}-"
    _clear_up(path, prefix)
    prefix = f"{prefix}{os.getpid()}-"
    try:
        beside = tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent)
    except OSError as error:
        raise PermissionError(
            "the folder that `path` is in must be one that you can write to. Received: "
            f"path={str(path)!r}. {error.strerror}"
        ) from error
    with beside as folder:
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
                    _keep(target, old / entry.name)
                os.replace(entry, target)
        except BaseException:
            for name in moved:
                target = path.parent / name
                if not (new / name).exists():
                    os.replace(target, new / name)
                if (old / name).exists():
                    os.replace(old / name, target)
            raise


def _keep(target, path):
    """Has what is at `target` be at `path` too; a folder, which cannot be replaced, alone there."""
    try:
        os.link(target, path)
    except OSError:  # of a folder, or a file system without links
        os.replace(target, path)


def _clear_up(path, prefix):
    """Removes what processes of this machine have left that were killed.

    If one was killed just between putting an older folder away and putting the new one there, the
    older one is put back.
    """
    for left in path.parent.iterdir():
        if left.name.startswith(prefix) and not _alive(left.name.removeprefix(prefix)):
            older = left / "old" / path.name
            if older.exists() and not path.exists():
                os.replace(older, path)
            shutil.rmtree(left, ignore_errors=True)


def _alive(name):
    """Whether the process lives whose number a name begins with; True where that is not known."""
    number = name.partition("-")[0]
    if not number.isdecimal() or os.name != "posix":  # elsewhere the question ends the process
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
