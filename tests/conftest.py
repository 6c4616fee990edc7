"""Settings for all tests: quiet TensorFlow, strict warnings about saving, the cells to test."""

import functools
import gc
import itertools
import os
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Kernels for GPUs are interpreted; read when PyTorch imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

import keras
import numpy as np
import pytest


def pytest_collection_modifyitems(items):
    if not os.environ.get("ALL_TESTS"):
        skip = pytest.mark.skip(reason="left out for time; make test-all runs it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


_tests = itertools.count()


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts from the same seeds, names and dtype policy."""
    count = next(_tests)
    if count % 20 == 0:
        # `clear_session`, which runs before every test and every trial of a search, looks for
        # garbage: what is there by now, which stays, it need not look through each time.
        if keras.backend.backend() == "jax":
            import jax

            jax.clear_caches()  # each compiled function has memory maps, of which there is a limit
        if count % 200 == 0:  # what has stayed until now may be garbage since; this takes a second
            gc.unfreeze()
        gc.collect()
        gc.freeze()
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    yield
    # Now, because what modules share is made before this runs for their first test.
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def worker():
    import deployed

    with deployed.worker() as process:
        yield process


@pytest.fixture
def quick(worker, monkeypatch):
    """Has runners run in one process that lasts, which is as far from here as a new one."""
    import deployed

    from keras_gates.deployment import verify

    run = functools.partial(deployed.run_in, worker)
    monkeypatch.setattr(verify, "subprocess", types.SimpleNamespace(run=run))
    monkeypatch.setattr(verify, "REPETITIONS", 2)


@pytest.fixture(scope="session")
def exported():
    return {}


@pytest.fixture
def artifact(request, exported, quick, tmp_path_factory):
    """The model of that name, its file and its report; exported once."""
    import deployed

    from keras_gates.deployment import export

    name = request.param
    if name not in exported:
        make, streaming = deployed.MODELS[name]
        model, path = make(), tmp_path_factory.mktemp("exported") / name
        exported[name] = model, path, export(model, path, streaming=streaming)
    return exported[name]
