"""The chief of a search on several machines: hands out trials until there are none."""

import os
import time
from concurrent import futures

POLL = 0.2  # seconds
FAREWELL = 10.0  # seconds for workers to hear that the search is over

_served = False


def serve(oracle):
    """Answers the workers until the search is over and each has been told so.

    KerasTuner's own server looks every 20 seconds only whether it is, and waits for ever for a
    worker that died at the very end. Here that one finds it on disk.

    Raises:
        RuntimeError: the address is taken, or this is a second search in one script.
    """
    # What KerasTuner sends over the network is loaded where it is needed alone.
    import grpc

    from keras_gates._keras import service

    global _served
    if _served:
        raise RuntimeError(
            "On several machines a script runs one search: its workers have left with the first. "
            "Put the second into a script of its own."
        )
    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    # Without the option two chiefs could share a port, each with half of the calls.
    options = [("grpc.so_reuseport", 0)]
    service.silence()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=options)
    servicer = service.OracleServicer(oracle)
    service.service().add_OracleServicer_to_server(servicer, server)
    try:
        listening = server.add_insecure_port(address)
    except RuntimeError:
        listening = False
    if not listening:
        raise RuntimeError(f"The chief cannot listen at {address}: is another one running there?")
    _served = True
    server.start()
    left = FAREWELL
    while left > 0 and not (servicer.stop_triggered and not oracle.tuner_ids and oracle.is_over()):
        time.sleep(POLL)
        left = left - POLL if oracle.is_over() else FAREWELL
    server.stop(grace=5).wait()
