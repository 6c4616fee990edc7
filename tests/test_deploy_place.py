"""Files appear at their place complete, or not at all, even if the process is killed."""

import os
import pathlib
import signal

import pytest
from deployed import contents

from keras_gates.deployment.place import atomic_write


@pytest.mark.slow
def test_files_appear_together_or_not_at_all(tmp_path):
    target = tmp_path / "model.xml"
    for text in ("first", "second"):
        with atomic_write(target) as path:
            path.write_text(text)
            path.with_suffix(".bin").write_text(text)
    assert contents(tmp_path) == {"model.xml": b"second", "model.bin": b"second"}

    def interrupted():
        with atomic_write(target) as path:
            path.write_text("third")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"model.xml": b"second", "model.bin": b"second"}


def killed(target, kind, at):
    """Writes in a process that is killed instead of making its move number `at`, from 0."""
    process = os.fork()
    if process:
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        return
    moves = 0

    def counting(move):
        def moving(source, to):
            nonlocal moves
            if moves == at:
                os.kill(os.getpid(), signal.SIGKILL)
            moves += 1
            move(source, to)

        return moving

    os.replace, os.link = counting(os.replace), counting(os.link)
    try:
        with atomic_write(target) as path:
            if kind == "folder":
                path.mkdir()
                path = path / "inside"
            path.write_text("new")
    finally:
        os._exit(1)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_while_files_are_moved(kind, tmp_path):
    """At every move: the older file stays there, and nothing is left after the next export."""
    target = tmp_path / "model"
    inside = target / "inside" if kind == "folder" else target
    if kind == "folder":
        target.mkdir()
    inside.write_text("old")
    for at in range(3 if kind == "folder" else 2):  # a link that fails counts as well
        killed(target, kind, at)
        assert len(list(tmp_path.glob(".model.*"))) == 1
        if kind == "file":
            assert target.read_text() == "old"
        with (
            pytest.raises(KeyboardInterrupt),
            atomic_write(target),
        ):  # clears up, and writes nothing
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == [target]
        assert inside.read_text() == "old"


@pytest.mark.slow
def test_what_others_are_writing_is_left_alone(tmp_path):
    with atomic_write(tmp_path / "model") as first, atomic_write(tmp_path / "model") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert contents(tmp_path) == {"model": b"first"}


@pytest.mark.slow
def test_files_go_back_if_one_cannot_be_moved(tmp_path, monkeypatch):
    target = tmp_path / "model.xml"
    target.write_text("old")
    (tmp_path / "model.bin").write_text("old")
    replace = os.replace

    def fails(source, to):
        if str(to) == str(target) and pathlib.Path(source).read_text() == "new":
            raise OSError("busy")
        replace(source, to)

    monkeypatch.setattr(os, "replace", fails)

    def write():
        with atomic_write(target) as path:
            path.write_text("new")
            path.with_suffix(".bin").write_text("new")

    with pytest.raises(OSError, match="busy"):
        write()
    assert contents(tmp_path) == {"model.xml": b"old", "model.bin": b"old"}
