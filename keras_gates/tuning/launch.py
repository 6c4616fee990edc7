"""Runs a search script in several processes, and keeps them alive until it is over."""

import collections
import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

from keras_gates.tuning import roles
from keras_gates.validation import invalid

LIVES, SHORT = 3, 300.0  # so many short lives in a row, in seconds, and a process is given up
_POLL = 0.2
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_SIGN = "KERAS_GATES_LAUNCHED"
_PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
_TAIL = 20  # lines
_OPTIONS: dict = {"text": True, "errors": "replace", "start_new_session": True, **_PIPES}


def launch(script, arguments=(), workers=2):
    """Runs `script` in `workers` processes on this machine, until all have ended.

    A process that dies is started again under its name, gets its trial back and trains the seeds
    that are left. A training in which its process has died twice is not begun again; its trial
    fails. When this process ends, all others do, whatever ended it.

    What the processes print comes out of here, line by line behind their names, their standard
    errors and what is said of them on the standard error. Of others than the first it comes from
    when a search runs in them, because until then they all say the same.

    The processor cores are shared out among the workers, unless TF_NUM_INTRAOP_THREADS or
    OMP_NUM_THREADS is set, and the devices of CUDA_VISIBLE_DEVICES, if it names several.

    Args:
        script: path of the script, the same that runs alone.
        arguments: the script's own.
        workers: how many.

    Raises:
        ChildProcessError: the script ran no search, or failed before one began in any process; or
            a process was given up, having died three times in a row within five minutes each, with
            no training ended in between.
    """
    command = [sys.executable, "-u", str(script), *arguments]
    with tempfile.TemporaryDirectory() as signs:
        crew = [_Worker(k, workers, command, pathlib.Path(signs, str(k))) for k in range(workers)]
        previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            while not all(worker.ended for worker in crew):
                for worker in crew:
                    worker.look_after(crew)
                time.sleep(_POLL)
            if not any(worker.sign.exists() for worker in crew):
                raise ChildProcessError(
                    f"{script} has ended and ran no search: it must call `search` of a tuner of "
                    "keras_gates.tuning, such as RandomSearch."
                )
        finally:
            _end(crew)
            signal.signal(signal.SIGTERM, previous)


def work(script, arguments, workers, worker):
    """Runs `script` as the one of `workers` processes with this id, in the place of this process:
    the script starts as it does alone, and signals reach it."""
    if not 0 <= worker < workers:
        raise invalid("worker", f"from 0 to {workers - 1}, of {workers} workers", worker)
    own = roles.environment(worker, workers)
    os.execve(sys.executable, [sys.executable, script, *arguments], {**os.environ, **own})


@functools.cache
def end_with_launcher():
    """Ends this process, and what it has started, as soon as the launcher is gone.

    The launcher holds the other end of the standard input and writes nothing, so that even its
    being killed is noticed.

    Returns:
        The path of a file, another for every launch, that tells the launcher how this process gets
        on: it is there when a search runs, and has something in it when a training has ended. None
        if there is no launcher.
    """
    if _SIGN not in os.environ:
        return None

    def wait():
        while os.read(0, 1):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    if os.getpgrp() == os.getpid():  # else the script has started this process
        threading.Thread(target=wait, daemon=True).start()
    return pathlib.Path(os.environ[_SIGN])


class _Worker:
    """A process in a group of its own, with its output line by line behind its name."""

    def __init__(self, number, workers, command, sign):
        self.name, self.command, self.sign = roles.worker_id(number), command, sign
        self.variables = {**_environment(number, workers), _SIGN: str(sign)}
        self.process, self.ended, self.lives, self.searched = None, False, 0, False
        self.held = [] if number else None  # lines that are not shown yet
        self.lock = threading.Lock()

    def look_after(self, crew):
        """Starts it if it does not run, until it has ended well."""
        if self.process is None:
            self._start()
            return
        ended = not self.ended and self.process.poll() is not None
        if ended:
            self.clear_up()
            self.ended = self.process.returncode == 0
        self.searched = self.searched or self.sign.exists()
        if ended and not self.ended:
            if self.process.returncode > 0 and not any(each.searched for each in crew):
                raise _failed_at_once(self, crew[0])
            self._show_held()
            self._died()
            self._start()
        elif self.searched or self.ended:
            self._show_held()

    def _start(self):
        self.sign.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.command, env=self.variables, **_OPTIONS)
        self.born = time.monotonic()
        _say("launch", f"{self.name} is process {self.process.pid}", sys.stderr)
        self.tails, self.readers = [], []
        for output, stream in (
            (self.process.stdout, sys.stdout),
            (self.process.stderr, sys.stderr),
        ):
            self.tails.append(collections.deque(maxlen=_TAIL))
            given = (output, stream, self.tails[-1])
            self.readers.append(threading.Thread(target=self._read, args=given, daemon=True))
            self.readers[-1].start()

    def _read(self, output, stream, tail):
        for line in output:
            tail.append(line)
            with self.lock:
                if self.held is None:
                    _say(self.name, line.rstrip("\n"), stream)
                else:
                    self.held.append((line.rstrip("\n"), stream))

    def _show_held(self):
        with self.lock:
            for line, stream in self.held or ():
                _say(self.name, line, stream)
            self.held = None

    @property
    def last_lines(self):
        lines = [line for tail in self.tails for line in tail][-_TAIL:]
        return f"Its last lines:\n    {'    '.join(lines)}"

    @property
    def cause(self):
        status = self.process.returncode
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"

    def _died(self):
        trained = self.sign.exists() and self.sign.read_text()
        in_vain = time.monotonic() - self.born < SHORT and not trained
        self.lives = self.lives + 1 if in_vain else 1
        if self.lives >= LIVES:
            raise ChildProcessError(
                f"{self.name} has died {LIVES} times in a row, each time within {SHORT:g} seconds; "
                f"the last time: {self.cause}. {self.last_lines}"
            )
        _say("launch", f"{self.name} has died: {self.cause}. It is started again.", sys.stderr)

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def clear_up(self):
        """Ends it and what it may have left behind, and waits for the last of its output."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        for reader in self.readers:
            reader.join(GRACE)


def _end(crew):
    # A second Ctrl-C would leave some of them behind.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    running = [worker for worker in crew if worker.process is not None and not worker.ended]
    for worker in running:
        worker.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for worker in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0, deadline - time.monotonic()))
        worker.clear_up()
    signal.signal(signal.SIGINT, previous)


def _failed_at_once(worker, first):
    """The error for a script that fails before a search has begun in any process."""
    with contextlib.suppress(subprocess.TimeoutExpired):  # as it will, most likely
        if first.process.wait(GRACE) > 0:
            worker = first
            first.clear_up()
    told = "What it printed is above." if worker is first else worker.last_lines
    return ChildProcessError(
        f"{worker.name} has failed before a search began: {worker.cause}. {told}"
    )


def _say(name, line, stream):
    # Whole lines, from any thread; and who does not read on does not stop the search.
    with contextlib.suppress(OSError):
        stream.write(f"{name:<9} | {line}\n")
        stream.flush()


def _environment(number, workers):
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    share = str(max(1, cores // workers))
    variables = {
        "TF_NUM_INTRAOP_THREADS": share,
        "OMP_NUM_THREADS": share,
        # TensorFlow would take all memory of a device for the first process.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        **roles.environment(number, workers),
    }
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(devices) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return variables
