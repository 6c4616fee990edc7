"""One line on the state of a search, or of its confirmation, kept up to date."""

import contextlib
import sys
import textwrap
import time

from keras_gates.tuning import records


class Line:
    """On a terminal a line that is written over itself; elsewhere one for each end of something.

    A subclass says what is in it, as `str(self)`.

    Attributes:
        at: where the training that is under way in this process has come to, in words.
    """

    def __init__(self, stream=None):
        self.stream, self.verbose, self.at = stream, 1, ""
        self._began, self._width = time.monotonic(), 0

    @contextlib.contextmanager
    def shown(self, going_on):
        """While it lasts, what is said of it; if it is interrupted, how it goes on."""
        try:
            yield
        except KeyboardInterrupt as error:
            error.add_note(f"Interrupted. {going_on}")  # which is the last line of the traceback
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

    def under_way(self, at):
        self.at = at
        self._show(over=False)

    def ended(self, trial_id, failure):
        """Something of this trial has ended; why it failed, or None, stays above the line."""
        self.at = ""
        if failure is not None:
            self._show(True, f"trial {trial_id} {failure}")
        self._show(over=True)

    def _show(self, over, line=None):
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

        trial 06 diverged: loss became nan in epoch 1, batch 3 (seed 0)
        7 of 24 trials done, 1 running (seed 1 of 2, epoch 3), 2 diverged; best val_accuracy 0.913 \
(trial 04); 3 min 12 s
    """

    def __init__(self, oracle, stream=None):
        super().__init__(stream)
        self.oracle = oracle

    def on_trial_begin(self, trial):
        self.under_way("")

    def on_trial_end(self, trial):
        self.ended(trial.trial_id, None if trial.status == "COMPLETED" else _failure(trial))

    # An oracle keeps the state of its display; this one has none.
    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def __str__(self):
        oracle = self.oracle
        ended = [oracle.trials[trial_id] for trial_id in oracle.end_order]
        failed = [_failure(t).partition(":")[0] for t in ended if t.status != "COMPLETED"]
        expected = oracle.expected_trials
        of = f" of {expected}" if expected else ""
        # An oracle shows the end of a trial before it takes it from those that run.
        running = [t for t in oracle.ongoing_trials.values() if t not in ended]
        of += " trial" if not of and len(ended) == 1 else " trials"
        parts = [f"{len(ended)}{of} done"]
        parts += [f"{len(running)} running{self.at}"] if running else []
        parts += [records.counted(failed)] if failed else []
        best = next(iter(oracle.get_best_trials()), None)
        if best is not None:
            parts[-1] += f"; best {oracle.objective.name} {best.score:.4g} (trial {best.trial_id})"
        return f"{', '.join(parts)}; {self.seconds}"


def _failure(trial):
    """What a failed trial came to, and why."""
    return trial.message or f"{records.RAISED}: no reason is on record"


class Confirming(Line):
    """While trials are trained with further seeds.

        3 of 10 trainings done, 1 diverged, trial 04 with seed 7 in epoch 3; 3 min 12 s

    Args:
        executions: from the id of each trial to its `records.Execution`s.
        seeds: those that count.
    """

    def __init__(self, executions, seeds, stream=None):
        super().__init__(stream)
        self.executions, self.seeds = executions, seeds

    def __str__(self):
        done = [e for its in self.executions.values() for e in its if e.seed in self.seeds]
        failed = records.counted(e.outcome for e in done if e.failure)
        number = f"{len(done)} of {len(self.executions) * len(self.seeds)} trainings done"
        return f"{number}{failed and f', {failed}'}{self.at}; {self.seconds}"
