"""One line on the state of a search, kept up to date."""

import collections
import pathlib
import sys
import time

from keras_gates.tuning import records


class Progress:
    """Takes the place of an oracle's display.

    On a terminal the line is written over itself; elsewhere there is one per ended trial.

        7 of 24 trials done, 1 running, 2 diverged; best val_accuracy 0.913 (trial 04); 3 min 12 s
    """

    def __init__(self, oracle, stream=None):
        self.oracle, self.stream, self.verbose = oracle, stream, 1
        self._began = time.monotonic()
        self._outcomes, self._width = {}, 0

    def on_trial_begin(self, trial):
        self._show(over=False)

    def on_trial_end(self, trial):
        self._show(over=True)

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
        failed = collections.Counter(self._outcome(t) for t in ended if t.status != "COMPLETED")
        of = f" of {oracle.max_trials}" if oracle.max_trials else ""
        # An oracle shows the end of a trial before it takes it from those that run.
        running = [t for t in oracle.ongoing_trials.values() if t not in ended]
        of += " trial" if not of and len(ended) == 1 else " trials"
        parts = [f"{len(ended)}{of} done", f"{len(running)} running"]
        parts += [f"{count} {outcome}" for outcome, count in sorted(failed.items())]
        best = next(iter(oracle.get_best_trials()), None)
        if best is not None:
            parts[-1] += f"; best {oracle.objective.name} {best.score:.4g} (trial {best.trial_id})"
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{', '.join(parts)}; {f'{minutes} min ' if minutes else ''}{seconds} s"

    def _outcome(self, trial):
        """What a failed trial came to, which its own file tells."""
        if trial.trial_id not in self._outcomes:
            folder = pathlib.Path(self.oracle._get_trial_dir(trial.trial_id))
            executions = records.read_executions(folder)
            found = records.Trial(trial.trial_id, {}, trial.status, executions)
            self._outcomes[trial.trial_id] = found.outcome
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
