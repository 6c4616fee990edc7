"""What a search leaves on disk for each trial, and what is read from it again.

KerasTuner keeps one score per trial. A report needs more: every repetition of the training, with
its history, and why it ended. `executions.json` in the folder of a trial holds that, and
`confirmed.json` what it was trained with further seeds. `confirmation.json` beside the trials says
which of them were confirmed last, and with which seeds. Every file is written under another name
and moved into place, so that one is whole whenever a process is killed.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import statistics

from keras_gates.tuning.distinct import choices

FINISHED, DIVERGED, RAISED, PRUNED, RUNNING = OUTCOMES = (
    "finished", "diverged", "raised", "pruned", "running",
)  # fmt: skip
SEARCH, TRIAL = "search.json", "trial.json"
# Of a trial: those of the search, and those with further seeds, which confirm it.
EXECUTIONS, CONFIRMED = "executions.json", "confirmed.json"
CONFIRMATION = "confirmation.json"  # of the search
BEGUN = "begun.json"
CELL, CANDIDATE = "cell", "candidate_activation"


@dataclasses.dataclass
class Execution:
    """One training of one trial.

    Attributes:
        seed: what `keras.utils.set_random_seed` was given before the model was built.
        outcome: "finished"; "diverged" (something not finite), "raised" (an error) or "pruned" (by
            the oracle).
        epoch: how many epochs had been begun when it ended.
        reason: why it did not finish, in words; None if it did.
        score: the objective at its best epoch; None unless it finished.
        best_epoch: that epoch, counted from 1; None unless it finished.
        history: from the name of a figure to its values, one per finished epoch.
        seconds: wall time of building and training.
        parameters: how many numbers the model learns or keeps; None if it was never built.
        sparsity: share of exact zeros in the hidden states of the recurrent layers on data, after
            training; None where it is not known.
        traceback: of the error that it raised, whole; None if there was none.
    """

    seed: int
    outcome: str
    epoch: int = 0
    reason: str | None = None
    score: float | None = None
    best_epoch: int | None = None
    history: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    parameters: int | None = None
    sparsity: float | None = None
    traceback: str | None = None

    @property
    def failure(self):
        """What it came to, and why; None if it finished."""
        if self.outcome == FINISHED:
            return None
        return f"{self.outcome}: {self.reason} (seed {self.seed})"

    def at_best(self):
        """All figures at the best epoch."""
        first = self.epoch + 1 - max(map(len, self.history.values()), default=0)
        if self.best_epoch is None:
            return {}
        return {name: values[self.best_epoch - first] for name, values in self.history.items()}


@dataclasses.dataclass
class Trial:
    """One choice of hyperparameters, with all its executions.

    Attributes:
        trial_id: KerasTuner's id.
        values: from the name of a hyperparameter, `unscoped`, to its value: those that the trial
            has asked for.
        status: KerasTuner's: "COMPLETED", "FAILED", "RUNNING", ...
        executions: a list of `Execution`, in the order of their seeds.
    """

    trial_id: str
    values: dict
    status: str
    executions: list

    @property
    def outcome(self):
        """ "finished" if every execution did; else what the first one that did not came to.
        "running" while KerasTuner has not ended the trial."""
        if self.status not in ("COMPLETED", "FAILED"):
            return RUNNING
        scored = self.status == "COMPLETED" and self.scores and math.isfinite(sum(self.scores))
        otherwise = FINISHED if scored else RAISED
        return next((e.outcome for e in self.executions if e.failure), otherwise)

    @property
    def scores(self):
        """The scores of the executions that finished."""
        return [e.score for e in self.executions if e.outcome == FINISHED]

    @property
    def score(self):
        """The mean over the executions; None unless every one finished."""
        return statistics.fmean(self.scores) if self.outcome == FINISHED else None

    @property
    def spread(self):
        """The standard deviation over the executions (n - 1); None for fewer than two."""
        known = self.outcome == FINISHED and len(self.scores) > 1
        return statistics.stdev(self.scores) if known else None

    @property
    def diverged(self):
        """The share of executions that diverged; None if there are none."""
        each = [e.outcome == DIVERGED for e in self.executions]
        return statistics.fmean(each) if each else None

    @property
    def seconds(self):
        return sum(e.seconds for e in self.executions)

    @property
    def reason(self):
        """Why the trial did not finish, with the seed; None if it did, or is running."""
        if self.outcome in (FINISHED, RUNNING):
            return None
        failed = (e for e in self.executions if e.failure)
        return next((f"{e.reason} (seed {e.seed})" for e in failed), "no score is on record")


@dataclasses.dataclass
class Search:
    """All that a folder of a search says.

    Attributes:
        objective, direction: what is optimized, and "min" or "max".
        trials: a list of `Trial`, in the order in which they began.
    """

    objective: str
    direction: str
    trials: list


def counted(outcomes):
    """How many there are of each: "2 diverged, 1 raised"."""
    counts = collections.Counter(sorted(outcomes))
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def write_json(path, content):
    """Writes JSON so that `path` holds the old content or the new, never a part of one."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w") as file:
        json.dump(content, file)
    os.replace(temporary, path)


def read_json(path):
    """What a file holds; None if there is none."""
    path = pathlib.Path(path)
    return json.loads(path.read_text()) if path.exists() else None


def read_executions(folder, name=EXECUTIONS):
    """The executions that the folder of a trial holds under this name."""
    return [Execution(**each) for each in read_json(pathlib.Path(folder) / name) or []]


def write_executions(folder, executions, name=EXECUTIONS):
    write_json(pathlib.Path(folder) / name, [dataclasses.asdict(e) for e in executions])


def begin(folder, seed, launch):
    """Notes that a training begins; how often it had begun before in this launch, and not ended.

    Args:
        folder: of the trial.
        seed: of the training.
        launch: whatever tells one launch from another.
    """
    path, training = pathlib.Path(folder) / BEGUN, {"seed": seed, "launch": str(launch)}
    before = read_json(path) or {}
    times = before.pop("times", 0) if training.items() <= before.items() else 0
    write_json(path, {**training, "times": times + 1})
    return times


def end(folder):
    """Notes that the training that has begun has ended."""
    (pathlib.Path(folder) / BEGUN).unlink(missing_ok=True)


def read_search(folder):
    """The `Search` in a project folder, running or over.

    Raises:
        ValueError: there is no search in the folder.
    """
    folder = pathlib.Path(folder)
    search = read_json(folder / SEARCH)
    if search is None:
        raise ValueError(
            f"`{folder}` holds no search: there is no {SEARCH}. Expected the folder that a tuner "
            "of keras_gates.tuning works in, directory/project_name."
        )
    trials = []
    for path in sorted(folder.glob(f"trial_*/{TRIAL}")):
        state = read_json(path)
        values, read = state["hyperparameters"]["values"], state.get("read")
        if read is not None:
            values = {n: v for n, v in values.items() if n in read or n not in choices(values)}
        executions = read_executions(path.parent)
        trials.append(Trial(state["trial_id"], unscoped(values), state["status"], executions))
    return Search(search["objective"], search["direction"], trials)


def unscoped(values):
    """The values of a trial without the scopes that `activation_space` needs for KerasTuner alone.

    Scopes that are named for the trial's own cell or candidate are left out, so that the gate of
    all trials is one choice. Others, such as those of layers, stay.

    >>> unscoped({"cell": "gru", "gru/candidate_activation": "relu", "gru/elu+relu/l1": 0.0})
    {'cell': 'gru', 'candidate_activation': 'relu', 'l1': 0.0}
    """
    drawn = {*named(values, CELL), *named(values, CANDIDATE)}
    found = {}
    for name, value in values.items():
        *scopes, last = name.split("/")
        kept = [scope for scope in scopes if not drawn & set(scope.split("+"))]
        short = "/".join([*kept, last])
        found[name if short in found or (short != name and short in values) else short] = value
    return found


def named(values, name):
    """The values of all hyperparameters of this name, in whatever scopes."""
    return [str(value) for key, value in values.items() if key.rpartition("/")[2] == name]
