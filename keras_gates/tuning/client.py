"""The worker's end of the line to the chief, which may die and come back."""

import functools
import os
import time

import grpc
import keras_tuner

from keras_gates._keras.service import TIMEOUT, OracleClient, service, silence
from keras_gates.tuning import roles

PAUSE = 1.0
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
OPTIONS = [
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),  # the chief is near
]


class Client(OracleClient):
    """KerasTuner's client, for which a lost chief is no error.

    Every call is made again until there is an answer: the chief that is started again takes what
    it knows already as it takes what is new. If it stays away and the search is over, as the disk
    says, this process ends.

    Args:
        oracle: a `RobustOracle`, which knows the folder of the search.

    Raises, from every call:
        SystemExit: the chief is gone and the search is over.
        keras_tuner.errors.FatalRuntimeError: no chief for KERAS_GATES_PATIENCE seconds, an hour
            unless that is set.
    """

    def __init__(self, oracle):
        super().__init__(oracle)
        silence()
        ip, port = os.environ["KERASTUNER_ORACLE_IP"], os.environ["KERASTUNER_ORACLE_PORT"]
        self._address, self._patience = f"{ip}:{port}", float(os.environ.get(roles.PATIENCE, 3600))
        channel = grpc.insecure_channel(self._address, options=OPTIONS)
        self.stub = _Wrapped(service().OracleStub(channel), self._call)

    def create_trial(self, tuner_id):
        trial = super().create_trial(tuner_id)
        if trial.status == "IDLE":
            time.sleep(PAUSE)  # KerasTuner asks again at once
        return trial

    def _call(self, method, request, **options):
        # Not `wait_for_ready`, with which the search may be over unnoticed.
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return method(request, timeout=TIMEOUT)
            except grpc.RpcError as error:
                if error.code() not in LOST:
                    raise
            if self._oracle.is_over():
                raise SystemExit(0)
            if time.monotonic() > deadline:
                raise keras_tuner.errors.FatalRuntimeError(
                    f"No chief has answered at {self._address} for {self._patience:g} seconds."
                )
            time.sleep(PAUSE)


class _Wrapped:
    """An object whose methods are called through `call`."""

    def __init__(self, wrapped, call):
        self._wrapped, self._call = wrapped, call

    def __getattr__(self, name):
        return functools.partial(self._call, getattr(self._wrapped, name))
