"""Runs a search script as one chief and several workers, and keeps them alive until it is over."""

import collections
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from keras_gates.tuning import roles

LIVES, SHORT = 3, 300.0  # so many short lives in a row, in seconds, and a child is given up
POLL = 0.2
FAREWELL = 20.0  # seconds for workers to end after the chief
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
LAUNCHED = "KERAS_GATES_LAUNCHED"


def environment(tuner_id, host, port, workers=None):
    """The variables that make a process a chief or a worker, as a dict.

    >>> environment(roles.worker_id(0), "node7", 8000)["KERASTUNER_TUNER_ID"]
    'worker-0'
    """
    variables = {
        "KERASTUNER_TUNER_ID": tuner_id,
        "KERASTUNER_ORACLE_IP": host,
        "KERASTUNER_ORACLE_PORT": str(port),
    }
    return variables if workers is None else {**variables, roles.WORKERS: str(workers)}


def launch(script, arguments=(), workers=2, port=None):
    """Runs `script` as a chief and `workers` workers on this machine, until the chief has ended.

    A process that dies is started again under its name: a worker gets its trial back and trains the
    seeds that are left, the chief goes on from the disk. A training in which its process has died
    twice is not begun again; its trial fails. When this process ends, all others do, whatever ended
    it.

    The processor cores are shared out among the workers, unless TF_NUM_INTRAOP_THREADS or
    OMP_NUM_THREADS is set, and the devices of CUDA_VISIBLE_DEVICES, if it names several.

    Args:
        script: path of the script, the same that runs alone.
        arguments: the script's own.
        workers: how many.
        port: where the chief listens, on the loopback interface. Default: a free one.

    Returns:
        The exit status: 0; 1 if a process was given up, having died three times in a row within
        five minutes each, with no training ended in between; 130 after Ctrl-C.
    """
    port, say = port or _free_port(), _Printer(len(roles.worker_id(workers - 1)))
    command = [sys.executable, "-u", str(script), *arguments]
    shared = _shared_environment(workers)

    with tempfile.TemporaryDirectory() as signs:

        def child(name, **own):
            variables = environment(name, "127.0.0.1", port, workers)
            sign = pathlib.Path(signs, name)
            return _Child(name, command, {**shared, **variables, **own}, say, sign)

        chief = child(roles.CHIEF)
        crew = [child(roles.worker_id(k), **_device(k)) for k in range(workers)]
        previous = signal.signal(signal.SIGTERM, _leave)
        try:
            return _supervise(chief, crew, say)
        except KeyboardInterrupt:
            say("launch", "interrupted")
            return 130
        finally:
            _end([chief, *crew])
            signal.signal(signal.SIGTERM, previous)


def end_with_launcher():
    """Ends this process, and what it has started, as soon as the launcher is gone.

    The launcher holds the other end of the standard input and writes nothing, so that even its
    being killed is noticed.

    Returns:
        The path of a file whose existence tells the launcher that this process gets on; another
        for every launch. None if this process was not launched.
    """
    sign = os.environ.pop(LAUNCHED, None)
    if sign is None or os.getpgrp() != os.getpid():
        return None

    def wait():
        while os.read(0, 1):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
    return pathlib.Path(sign)


def _supervise(chief, crew, say):
    for child in (chief, *crew):
        child.start()
    while not chief.ended:
        time.sleep(POLL)
        for child in (chief, *crew):
            if not child.look_after():
                child.tell_why()
                return 1
            if child.ended and child in crew and all(worker.ended for worker in crew):
                crew = []
                say("launch", "All workers have finished; the chief is at work.")
    deadline = time.monotonic() + FAREWELL
    while any(child.runs() for child in crew) and time.monotonic() < deadline:
        time.sleep(POLL)
    return 0


class _Child:
    """A process in a group of its own, with its output line by line behind its name.

    Attributes:
        ended: whether it has ended well.
    """

    def __init__(self, name, command, variables, say, sign):
        self.name, self.command, self.say, self.sign = name, command, say, sign
        self.variables = {**variables, LAUNCHED: str(sign)}
        self.process, self.reader, self.ended = None, None, False
        self.lives, self.tail = 0, collections.deque(maxlen=20)

    def start(self):
        self.tail.clear()
        self.sign.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self.command,
            env=self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.born = time.monotonic()
        self.say("launch", f"{self.name} is process {self.process.pid}")
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _read(self, output):
        for line in output:
            self.tail.append(line)
            self.say(self.name, line.rstrip("\n"))

    def runs(self):
        return self.process is not None and self.process.poll() is None

    def look_after(self):
        """Starts it again if it has died. False if it has died too often."""
        if self.ended or self.runs():
            return True
        self.clear_up()
        status = self.process.returncode
        if status == 0:
            self.ended = True
            return True
        in_vain = time.monotonic() - self.born < SHORT and not self.sign.exists()
        self.lives = self.lives + 1 if in_vain else 1
        if self.lives >= LIVES:
            return False
        self.say("launch", f"{self.name} has died: {_cause(status)}. It is started again.")
        self.start()
        return True

    def tell_why(self):
        lines = "".join(f"    {line}" for line in self.tail)
        print(
            f"{self.name} has died {LIVES} times in a row, each time within {SHORT:g} seconds; the "
            f"last time: {_cause(self.process.returncode)}. Its last lines:\n{lines}",
            file=sys.stderr,
            flush=True,
        )

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def clear_up(self):
        """Ends what it may have left behind, and waits for the last of its output."""
        self.signal(signal.SIGKILL)
        self.reader.join(GRACE)


def _end(children):
    # A second Ctrl-C would leave some of them behind.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    children = [child for child in children if child.process is not None and not child.ended]
    for child in children:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while any(child.runs() for child in children) and time.monotonic() < deadline:
        time.sleep(POLL)
    for child in children:
        child.clear_up()
        child.process.wait()
    signal.signal(signal.SIGINT, previous)


class _Printer:
    """Prints whole lines, from any thread, with a name before each."""

    def __init__(self, width):
        self.width, self.lock = max(width, len("launch")), threading.Lock()

    def __call__(self, name, line):
        # Who does not read on does not stop the search.
        with self.lock, contextlib.suppress(OSError):
            print(f"{name:<{self.width}} | {line}", flush=True)


def _shared_environment(workers):
    variables = dict(os.environ)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    share = str(max(1, cores // workers))
    variables.setdefault("TF_NUM_INTRAOP_THREADS", share)
    variables.setdefault("OMP_NUM_THREADS", share)
    # TensorFlow would take all memory of a device for the first process.
    variables.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    return variables


def _device(number):
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _cause(status):
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _leave(number, frame):
    raise SystemExit(128 + number)
