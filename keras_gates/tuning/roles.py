"""What this process is in a search: alone, the chief that hands out trials, or a worker.

KerasTuner's environment variables say so: KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT and
KERASTUNER_TUNER_ID, which has "chief" in it for the chief. `python -m keras_gates.tuning` sets
them, and tells the chief with KERAS_GATES_WORKERS how many workers there are, and a worker with
KERAS_GATES_PATIENCE for how many seconds a chief may stay away.
"""

import os

ALONE, CHIEF, WORKER = "alone", "chief", "worker"
WORKERS, PATIENCE = "KERAS_GATES_WORKERS", "KERAS_GATES_PATIENCE"
ALONE_ID = "tuner0"  # KerasTuner's


def role():
    if "KERASTUNER_ORACLE_IP" not in os.environ:
        return ALONE
    return CHIEF if "chief" in os.environ.get("KERASTUNER_TUNER_ID", "") else WORKER


def worker_id(number):
    """The id of a worker; they are counted from 0."""
    return f"worker-{number}"


def comes_back(tuner_id):
    """Whether to wait for this tuner to go on with its trial, when the search goes on."""
    if role() != CHIEF:
        return False
    if WORKERS not in os.environ:
        return tuner_id != ALONE_ID
    return tuner_id in [worker_id(number) for number in range(int(os.environ[WORKERS]))]
