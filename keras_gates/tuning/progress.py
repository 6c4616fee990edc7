"""One line on the state of a search, kept up to date."""

import collections
import pathlib
import sys
import time

from keras_gates.tuning import records


class Progress:
    r"""Takes the place of an oracle's display.

    On a terminal the line is written over itself, after every epoch; elsewhere there is one per
    ended trial. Why a trial failed stays above it.

        trial 06 diverged: loss became nan in epoch 1, batch 3 (seed 0)
        7 of 24 trials done, 1 running (seed 1 of 2, epoch 3), 2 diverged; best val_accuracy 0.913 \
(trial 04); 3 min 12 s
    """

    def __init__(self, oracle, stream=None):
        self.oracle, self.stream, self.verbose = oracle, stream, 1
        self._began = time.monotonic()
        self._outcomes, self._width, self._at = {}, 0, ""

    def on_trial_begin(self, trial):
        self._show(over=False)

    def on_trial_end(self, trial):
        self._at = ""
        outcome, reason = self._failure(trial) if trial.status != "COMPLETED" else (None, None)
        if reason and self.verbose:
            self._print(f"trial {trial.trial_id} {outcome}: {_cut(reason)}")
        self._show(over=True)

    def on_epoch_end(self, seed, seeds, epoch):
        """Where the training that is under way in this process has come to."""
        self._at = f" (seed {seed} of {seeds}, epoch {epoch})"
        self._show(over=False)

    def close(self):
        """Leaves the line as it is."""
        if self.verbose and self._width:
            print(file=self.stream or sys.stdout, flush=True)
            self._width = 0

    # An oracle keeps the state of its display; this one has none.
    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def __str__(self):
        oracle = self.oracle
        ended = [oracle.trials[trial_id] for trial_id in oracle.end_order]
        failed = collections.Counter(
            self._failure(trial)[0] for trial in ended if trial.status != "COMPLETED"
        )
        expected = oracle.expected_trials
        of = f" of {expected}" if expected else ""
        # An oracle shows the end of a trial before it takes it from those that run.
        running = [t for t in oracle.ongoing_trials.values() if t not in ended]
        of += " trial" if not of and len(ended) == 1 else " trials"
        parts = [f"{len(ended)}{of} done", f"{len(running)} running{self._at}"]
        parts += [f"{count} {outcome}" for outcome, count in sorted(failed.items())]
        best = next(iter(oracle.get_best_trials()), None)
        if best is not None:
            parts[-1] += f"; best {oracle.objective.name} {best.score:.4g} (trial {best.trial_id})"
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{', '.join(parts)}; {f'{minutes} min ' if minutes else ''}{seconds} s"

    def _failure(self, trial):
        """What a failed trial came to, and why, which its own file tells."""
        if trial.trial_id not in self._outcomes:
            folder = pathlib.Path(self.oracle._get_trial_dir(trial.trial_id))
            executions = records.read_executions(folder)
            found = records.Trial(trial.trial_id, {}, trial.status, executions)
            self._outcomes[trial.trial_id] = found.outcome, found.reason
        return self._outcomes[trial.trial_id]

    def _show(self, over):
        if not self.verbose:
            return
        stream = self.stream or sys.stdout
        if stream.isatty():
            line = str(self)
            print(f"\r{line:<{self._width}}", end="", file=stream, flush=True)
            self._width = len(line)
        elif over:
            print(self, file=stream, flush=True)

    def _print(self, line):
        """A line that stays."""
        stream = self.stream or sys.stdout
        start = "\r" if stream.isatty() else ""
        print(f"{start}{line:<{self._width}}", file=stream, flush=True)
        self._width = 0


def _cut(text, most=200):
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
