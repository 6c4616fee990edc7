"""A search by two processes on this machine, both of which are killed on the way.

Tries six pairs of activations in a GRU that reads scikit-learn's digits row by row. In the middle
of a trial a worker is killed as if its machine had gone, and later the other one.
`keras-gates search` starts both again. At the end every trial and every training is accounted for.

    python examples/search_distributed.py             # one to two minutes on two cores
    python examples/search_distributed.py --search    # the search itself, alone, nothing killed
"""

import argparse
import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_gates import tuning
from keras_gates.tuning import records

PROJECT, BEGUN = "digits", "begun.jsonl"
WORKERS, SEEDS = 2, 2
CHOICES = {"gates": ["sigmoid", "hard_sigmoid"], "candidates": ["tanh", "softsign", "relu"]}
FIXED = {
    "units": 24,
    "layers": 1,
    "dropout": 0.0,
    "learning_rate": 0.01,
    "grad_clip_norm": 1.0,
    "activation_l1": 0.0,
}


# ---------------------------------------------------------------------- the search


class Logged(tuning.GatedRNNHyperModel):
    """Notes every training that begins, so that the account has a second source."""

    log = None

    def fit(self, hp, model, *args, **kwargs):
        entry = {"values": hp.values, "process": os.getpid()}
        with open(self.log, "a") as file:
            file.write(json.dumps(entry) + "\n")
        return super().fit(hp, model, *args, **kwargs)


def search(arguments):
    """What every process runs: each worker, or one process alone."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order].reshape(-1, 8, 8) / 16).astype("float32"), digits[order]
    hypermodel = Logged.from_data(x, y, "classification", cell="gru", **FIXED, **CHOICES)
    hypermodel.log = arguments.out / BEGUN
    tuner = tuning.GridSearch(
        hypermodel,
        "val_accuracy",
        max_trials=arguments.trials,
        executions_per_trial=SEEDS,
        seed=0,
        directory=arguments.out,
        project_name=PROJECT,
    )
    data = {"validation_data": (x[1400:], y[1400:]), "batch_size": 64}
    tuner.search(x[:1400], y[:1400], epochs=arguments.epochs, **data)
    # Only the first worker comes so far.
    print(tuning.search_report(tuner))


# ---------------------------------------------------------------------- the accidents


class Launched:
    """The search under `launch`, whose output tells the processes.

    Attributes:
        processes: from "worker-0" and "worker-1" to the ids of their processes, in order.
    """

    def __init__(self, arguments):
        own = ["--search", "--out", arguments.out]
        own += ["--trials", arguments.trials, "--epochs", arguments.epochs]
        launch = ["-m", "keras_gates", "search", "--workers", WORKERS, __file__, *own]
        self.processes = collections.defaultdict(list)
        self.launcher = subprocess.Popen(
            [sys.executable, *map(str, launch)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # where it tells of the processes
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.launcher.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"launch +\| (\S+) is process (\d+)", line):
                self.processes[found[1]].append(int(found[2]))

    def kill(self, name):
        print(f"example   | {name} is killed", flush=True)
        os.kill(self.processes[name][-1], signal.SIGKILL)

    def wait_until(self, condition):
        while self.launcher.poll() is None:
            found = condition()
            if found:
                return found
            time.sleep(0.1)
        raise RuntimeError("The search ended before it could be disturbed.")

    def end(self):
        """Waits for the end; the exit status."""
        self.launcher.wait()
        self._reader.join()
        return self.launcher.returncode


def state(out):
    """What KerasTuner's oracle has on disk."""
    path = out / PROJECT / "oracle.json"
    return json.loads(path.read_text()) if path.exists() else {"ongoing_trials": {}}


def half_done(out):
    """A worker in the middle of its second training of a trial: its name, and the trial's."""
    begun = trainings_begun(out)
    running = {trial: worker for worker, trial in state(out)["ongoing_trials"].items()}
    for trial in records.read_search(out / PROJECT).trials if begun else []:
        if trial.trial_id in running and len(trial.executions) == 1 and len(begun[key(trial)]) == 2:
            return running[trial.trial_id], trial.trial_id
    return None


def disturbed(arguments):
    """Runs the search, with its accidents; the `account` of it."""
    out = arguments.out
    launched = Launched(arguments)
    try:
        worker, trial = launched.wait_until(lambda: half_done(out))
        launched.kill(worker)
        soon = max(1, arguments.trials // 2)
        launched.wait_until(lambda: len(state(out)["end_order"]) >= soon)
        other = f"worker-{1 - int(worker[-1])}"
        launched.kill(other)
        status = launched.end()
    finally:
        launched.launcher.terminate()
        launched.launcher.wait()
    if status:
        raise SystemExit(status)
    return account(out, launched.processes) | {"killed": [worker, other], "interrupted": trial}


# ---------------------------------------------------------------------- the account


def key(trial):
    """What a trial and its trainings have in common."""
    return json.dumps(trial.values, sort_keys=True)


def trainings_begun(out):
    """From each choice to the processes that began a training with it, by our own notes."""
    begun = collections.defaultdict(list)
    if (out / BEGUN).exists():
        for line in (out / BEGUN).read_text().splitlines():
            entry = json.loads(line)
            begun[json.dumps(entry["values"], sort_keys=True)].append(entry["process"])
    return begun


def account(out, processes):
    """What became of every trial and training, by the report, the oracle and our own notes.

    Args:
        out: the folder.
        processes: see `Launched`.
    """
    begun = trainings_begun(out)
    names = {process: name for name, ids in processes.items() for process in ids}
    rows = []
    for trial in records.read_search(out / PROJECT).trials:
        ran = begun.pop(key(trial), [])
        rows.append(
            {
                "trial": trial.trial_id,
                "outcome": trial.outcome,
                "score": trial.score,
                "recorded": len(trial.executions),
                "begun": len(ran),
                "processes": [f"{names[p]} ({p})" for p in dict.fromkeys(ran)],
            }
        )
    return {
        "trials": rows,
        "reported": sorted(row["trial"] for row in tuning.search_report(out / PROJECT).trials),
        "ended": state(out)["end_order"],
        "unaccounted": sum(map(len, begun.values())),
    }


def format_account(found):
    lines = [f"{'trial':<6} {'outcome':<9} {'score':<6} trainings  begun  by"]
    for row in found["trials"]:
        score = "-" if row["score"] is None else f"{row['score']:.3f}"
        lines.append(
            f"{row['trial']:<6} {row['outcome']:<9} {score:<6} {row['recorded']:>9}  "
            f"{row['begun']:>5}  {', '.join(row['processes'])}"
        )
    recorded, begun = (sum(row[key] for row in found["trials"]) for key in ("recorded", "begun"))
    once = sorted(found["ended"]) == found["reported"] == [row["trial"] for row in found["trials"]]
    lines += [
        "",
        f"killed: {' and '.join(found['killed'])}",
        f"trials: {len(found['trials'])}, every one ended and reported once: "
        f"{'yes' if once else 'NO'}",
        f"trainings: {recorded} on record, {begun} begun, {begun - recorded} of them cut short",
        f"spared: the first training of trial {found['interrupted']}, which was over when "
        f"{found['killed'][0]} was killed in the second",
    ]
    return "\n".join(lines)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true", help="run the search itself")
    parser.add_argument("--trials", type=int, default=6, help="(default: 6)")
    parser.add_argument("--epochs", type=int, default=4, help="per training (default: 4)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("out/search_distributed"),
        help="an empty or new folder (default: out/search_distributed)",
    )
    arguments = parser.parse_args(argv)
    if not arguments.search and (arguments.out / PROJECT).exists():
        parser.error(f"--out: there is a search in {arguments.out} already")
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def main(argv=None):
    """Runs it all; returns the account, or None for `--search`."""
    arguments = parse_arguments(argv)
    if arguments.search:
        search(arguments)
        return None
    found = disturbed(arguments)
    print(f"\n{format_account(found)}")
    return found


if __name__ == "__main__":
    main()
