"""One line on the state of a search, or of its confirmation, kept up to date."""

import contextlib
import pathlib
import sys
import textwrap
import time

from keras_gates.tuning import records


class Line:
    """On a terminal a line that is written over itself; elsewhere one for each end of something.

    A subclass says what is in it, as `str(self)`.
    """

    def __init__(self, stream=None):
        self.stream, self.verbose = stream, 1
        self._began, self._width = time.monotonic(), 0

    @contextlib.contextmanager
    def shown(self, going_on):
        """While it lasts, what is said of it; if it is interrupted, how it goes on."""
        try:
            yield
        except KeyboardInterrupt:
            self._close()
            print(f"Interrupted. {going_on}")
            raise
        finally:
            self._close()

    def _close(self):
        if self._width:
            print(file=self.stream or sys.stdout, flush=True)
            self._width = 0

    @property
    def seconds(self):
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{f'{minutes} min ' if minutes else ''}{seconds} s"

    def show(self, over, line=None):
        """The line as it is now, or another one, which stays; `over`: something has ended."""
        stream = self.stream or sys.stdout
        terminal = self.verbose and stream.isatty()
        if not (self.verbose and (terminal or over)):
            return
        text = str(self) if line is None else textwrap.shorten(line, 230, placeholder="...")
        stays = line is not None or not terminal
        start, end = "\r" if terminal else "", "\n" if stays else ""
        print(f"{start}{text:<{self._width}}", end=end, file=stream, flush=True)
        self._width = 0 if stays else len(text)


class Progress(Line):
    r"""Takes the place of an oracle's display.

    There is something new after every epoch; what ends are trials. Why one failed stays above the
    line.

        trial 06 diverged: loss became nan in epoch 1, batch 3 (seed 0)
        7 of 24 trials done, 1 running (seed 1 of 2, epoch 3), 2 diverged; best val_accuracy 0.913 \
(trial 04); 3 min 12 s
    """

    def __init__(self, oracle, stream=None):
        super().__init__(stream)
        self.oracle = oracle
        self._outcomes, self._at = {}, ""

    def on_trial_begin(self, trial):
        self.show(over=False)

    def on_trial_end(self, trial):
        self._at = ""
        outcome, reason = self._failure(trial) if trial.status != "COMPLETED" else (None, None)
        if reason:
            self.show(True, f"trial {trial.trial_id} {outcome}: {reason}")
        self.show(over=True)

    def on_epoch_end(self, seed, seeds, epoch):
        """Where the training that is under way in this process has come to."""
        self._at = f" (seed {seed} of {seeds}, epoch {epoch})"
        self.show(over=False)

    # An oracle keeps the state of its display; this one has none.
    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def __str__(self):
        oracle = self.oracle
        ended = [oracle.trials[trial_id] for trial_id in oracle.end_order]
        failed = [self._failure(trial)[0] for trial in ended if trial.status != "COMPLETED"]
        expected = oracle.expected_trials
        of = f" of {expected}" if expected else ""
        # An oracle shows the end of a trial before it takes it from those that run.
        running = [t for t in oracle.ongoing_trials.values() if t not in ended]
        of += " trial" if not of and len(ended) == 1 else " trials"
        parts = [f"{len(ended)}{of} done", f"{len(running)} running{self._at}"]
        parts += [records.counted(failed)] if failed else []
        best = next(iter(oracle.get_best_trials()), None)
        if best is not None:
            parts[-1] += f"; best {oracle.objective.name} {best.score:.4g} (trial {best.trial_id})"
        return f"{', '.join(parts)}; {self.seconds}"

    def _failure(self, trial):
        """What a failed trial came to, and why, which its own file tells."""
        if trial.trial_id not in self._outcomes:
            folder = pathlib.Path(self.oracle._get_trial_dir(trial.trial_id))
            executions = records.read_executions(folder)
            found = records.Trial(trial.trial_id, {}, trial.status, executions)
            self._outcomes[trial.trial_id] = found.outcome, found.reason
        return self._outcomes[trial.trial_id]


class Confirming(Line):
    """While trials are trained with further seeds.

    3 of 10 trainings done, 1 diverged, trial 04 with seed 7 in epoch 3; 3 min 12 s
    """

    def __init__(self, trainings, done, stream=None):
        super().__init__(stream)
        self.trainings, self.done = trainings, done
        self._failed, self._at = [], ""

    def on_epoch_end(self, trial_id, seed, epoch):
        self._at = f", trial {trial_id} with seed {seed} in epoch {epoch}"
        self.show(over=False)

    def on_training_end(self, trial_id, execution):
        self.done, self._at = self.done + 1, ""
        if execution.reason is not None:
            self._failed.append(execution.outcome)
            told = f"{execution.outcome}: {execution.reason} (seed {execution.seed})"
            self.show(True, f"trial {trial_id} {told}")
        self.show(over=True)

    def __str__(self):
        failed = f", {records.counted(self._failed)}" if self._failed else ""
        return f"{self.done} of {self.trainings} trainings done{failed}{self._at}; {self.seconds}"
