"""The report of a search: a table of its trials, what helped, and whether the best is better."""

import collections
import csv
import dataclasses
import math
import os
from typing import Any

from keras_gates.diagnostics.report import dataframe, plain
from keras_gates.tuning import records
from keras_gates.tuning.report import text
from keras_gates.tuning.report.comparison import Comparison, compare, ranked
from keras_gates.tuning.report.confirmation import Confirmation, last_confirmation
from keras_gates.tuning.report.effects import Effect, main_effects
from keras_gates.tuning.report.sections import as_text
from keras_gates.validation import file_path

FIELDS = (
    "trial", "rank", "outcome", "score", "spread", "seeds", "diverged", "sparsity", "parameters",
    "epochs", "seconds", "reason",
)  # fmt: skip


@dataclasses.dataclass
class SearchReport:
    """What `search_report` finds. `print` shows the verdict, the best trials, and what helped.

    `to_html` writes it as a page, `to_csv`, `to_markdown`, `to_dataframe` and `to_dict` give the
    same to other programs. Of
    `keras_gates.tuning`, `plot_scores`, `plot_parallel` and `plot_learning_curves` draw it.

    Attributes:
        objective, direction: what was optimized, and "min" or "max".
        trials: a list of dicts, one for every trial, the best first, then those without a score in
            the order in which they began. Their keys:

            - `trial`, `rank`: the id, and the place from 1; None without a score.
            - `outcome`: "finished", "diverged", "raised", "pruned" or "running".
            - `score`, `spread`: mean and standard deviation of the objective over the seeds.
            - `seeds`: how many trainings there were; `diverged`: the share of them that diverged.
            - `sparsity`: the share of zeros in hidden states, mean over the seeds; `parameters`.
            - `epochs`: how many the longest training began; `seconds`: of all trainings together.
            - `reason`: why it did not finish.
            - every hyperparameter that the trial has, by name.
        best: the first of `trials`; None if none has a score.
        effects: a list of `Effect`, one for every level of every choice that varies.
        comparison: the `Comparison` with the default pair of activations.
        curves: for the best trial and the best with the default pair, from the id to the objective
            after every epoch, one list per seed.
        confirmation: the `Confirmation` that `Tuner.confirm` returned last; None before it has.
    """

    objective: str
    direction: str
    trials: list
    best: dict | None
    effects: list[Effect]
    comparison: Comparison
    curves: dict
    confirmation: Confirmation | None = None

    @property
    def choices(self):
        """The names of all hyperparameters."""
        return list({name: None for row in self.trials for name in row if name not in FIELDS})

    @property
    def counts(self):
        """From each outcome to the number of trials."""
        return dict(collections.Counter(row["outcome"] for row in self.trials))

    def to_dict(self):
        """Everything as plain dicts, lists and numbers, for JSON. None stands for what is not
        finite."""
        confirmed = self.confirmation and self.confirmation.to_dict()
        rest = dataclasses.asdict(dataclasses.replace(self, confirmation=None))
        return plain({**rest, "confirmation": confirmed})

    def to_dataframe(self):
        """The trials as a pandas.DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        return dataframe("SearchReport", self.trials, columns=[*FIELDS, *self.choices])

    def to_csv(self, path):
        """Writes the trials to a file, with a line of names first. Empty: not known, not there."""
        file_path("path", path)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*FIELDS, *self.choices])
            writer.writeheader()
            writer.writerows(self.trials)

    def to_markdown(self):
        """The trials as a table in Markdown."""
        return text.markdown([*FIELDS, *self.choices], self.trials)

    def to_html(self, path):
        """Writes a page with the verdict, tables and, where matplotlib is installed, pictures. It
        is one file, which needs no network and runs no script.

        Raises:
            TypeError: `path` is no path.
            FileNotFoundError: the folder that it is in is not there.
        """
        from keras_gates.tuning.report import page

        page.write(self, path)

    def _repr_html_(self):
        from keras_gates.tuning.report import page

        return page.block(self)

    def __str__(self):
        return as_text([text.title(self), *text.paragraphs(self)], text.sections(self))


def search_report(tuner_or_folder: Any) -> SearchReport:
    """Reports on a search, whether it is over or still running: to be printed, written or drawn.

    Args:
        tuner_or_folder: a tuner of `keras_gates.tuning`, or the folder that it keeps its search in,
            directory/project_name.

    Returns:
        A `SearchReport`.

    Raises:
        TypeError: neither a tuner nor a path.
        ValueError: there is no search in the folder.

    A search of two trials, as a tuner leaves it on disk:

    >>> import pathlib, tempfile
    >>> from keras_gates.tuning import records
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> search = {"objective": "val_accuracy", "direction": "max"}
    >>> records.write_json(folder / "search.json", search)
    >>> for name, candidate, scores in [("0", "tanh", (0.71, 0.73)), ("1", "relu", (0.84, 0.86))]:
    ...     trial = folder / f"trial_{name}"
    ...     trial.mkdir()
    ...     values = {"cell": "gru", "candidate_activation": candidate}
    ...     records.write_json(trial / "trial.json", {"trial_id": name, "status": "COMPLETED",
    ...                                               "hyperparameters": {"values": values}})
    ...     records.write_executions(trial, [
    ...         records.Execution(seed, "finished", epoch=5, score=score, best_epoch=5)
    ...         for seed, score in enumerate(scores)])
    >>> report = search_report(folder)  # or search_report(tuner)
    >>> print(report.comparison.sentence)
    The best trial (1: gru, relu) beats the default pair (0: gru, tanh) beyond the noise, by 0.13 \
in val_accuracy (95% interval 0.06915 to 0.1908, corrected for having picked the best of 2 \
finished trials; standard deviation over seeds 0.01414).
    >>> [(row["trial"], round(row["score"], 2)) for row in report.trials]
    [('1', 0.85), ('0', 0.72)]
    """
    folder = getattr(tuner_or_folder, "project_dir", tuner_or_folder)
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            "`tuner_or_folder` must be a tuner of keras_gates.tuning or the folder of its search. "
            f"Received: {tuner_or_folder!r}"
        )
    search = records.read_search(folder)
    scored = ranked(search)
    ranks = {trial.trial_id: i + 1 for i, trial in enumerate(scored)}
    others = [trial for trial in search.trials if trial.trial_id not in ranks]
    rows = [_row(trial, ranks.get(trial.trial_id)) for trial in [*scored, *others]]
    confirmation = last_confirmation(folder, search)
    comparison = compare(search, confirmation.scores if confirmation else ())
    return SearchReport(
        objective=search.objective,
        direction=search.direction,
        trials=rows,
        best=rows[0] if scored else None,
        effects=main_effects(search),
        comparison=comparison,
        curves={
            trial.trial_id: [_curve(e, search.objective) for e in trial.executions]
            for trial in scored
            if trial.trial_id in (comparison.best, comparison.default)
        },
        confirmation=confirmation,
    )


def _row(trial, rank):
    executions = trial.executions
    sparsity = [e.sparsity for e in executions if e.sparsity is not None]
    row = {
        "trial": trial.trial_id,
        "rank": rank,
        "outcome": trial.outcome,
        "score": trial.score,
        "spread": trial.spread,
        "seeds": len(executions),
        "diverged": trial.diverged,
        "sparsity": sum(sparsity) / len(sparsity) if sparsity else None,
        "parameters": next((e.parameters for e in executions if e.parameters is not None), None),
        "epochs": max((e.epoch for e in executions), default=None),
        "seconds": trial.seconds,
        "reason": trial.reason,
    }
    for name, value in trial.values.items():
        if not name.startswith("tuner/"):  # KerasTuner's own, no choices
            row[f"hp/{name}" if name in FIELDS else name] = value
    return row


def _curve(execution, objective):
    """The objective after each epoch from the first; NaN for those of an earlier trial, which
    Hyperband goes on from."""
    values = execution.history.get(objective, [])
    return [math.nan] * (execution.epoch - len(values)) + list(values)
