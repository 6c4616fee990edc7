"""Which of several processes of one search this is, as environment variables say.

`keras-gates search` sets them: KERASTUNER_TUNER_ID, the id under which KerasTuner hands
out trials, and KERAS_GATES_WORKERS, how many workers there are.
"""

import os

ID, WORKERS = "KERASTUNER_TUNER_ID", "KERAS_GATES_WORKERS"


def worker_id(number):
    """The id of a worker; they are counted from 0."""
    return f"worker-{number}"


def environment(number, workers):
    """The variables that make a process a worker.

    >>> environment(0, 4)
    {'KERASTUNER_TUNER_ID': 'worker-0', 'KERAS_GATES_WORKERS': '4'}
    """
    return {ID: worker_id(number), WORKERS: str(workers)}


def several():
    """Whether the search runs in several processes."""
    return WORKERS in os.environ


def is_first():
    """Whether this process is the one that goes on when the search is over."""
    return not several() or os.environ[ID] == worker_id(0)


def comes_back(tuner_id):
    """Whether to wait for this tuner to go on with its trial, when the search goes on."""
    return several() and tuner_id in map(worker_id, range(int(os.environ[WORKERS])))
