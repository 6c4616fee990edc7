"""Settings for all tests: quiet TensorFlow, strict warnings about saving, the cells to test."""

import functools
import gc
import os
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

# Of the tests of exported files, the usual run takes these: each file is run in a process of its
# own, which takes seconds.
EXPORTED = {
    "test_names_are_the_same_at_every_export_of_a_process",
    "test_a_process_of_its_own_runs_the_file",
    "test_a_runner_cannot_import_the_package",
    "test_a_file_that_differs_is_not_left_and_an_older_one_is_kept",
    "test_killed_while_files_are_moved",
    "test_old_files_run",
    "test_a_path_that_ends_as_another_format_is_refused",
    "test_tolerance_is_positive",
    "test_what_is_put_into_the_folder_of_a_saved_model_is_not_lost",
    "test_what_is_no_openvino_file_is_not_lost",
    "test_damaged_files_are_told",
    "test_a_difference_that_grows_with_the_length_may_be_chaos",
    "test_weights_that_are_not_finite_are_refused",
    "test_arguments_are_checked_before_anything_is_written",
    "test_the_difference_is_the_largest_of_all_in_the_scale_of_its_output",
    "test_what_cannot_stream_is_refused_with_the_layer",
    "test_inspect_refuses_what_it_does_not_know",
    # ONNX
    "test_activations_are_attributes_with_their_exact_parameters",
    "test_bidirectional_is_one_operator",
    "test_cells_are_operators",
    "test_export_runs_the_file_without_this_package",
    "test_many_sequences_run_as_a_scan",
    "test_masks_are_obeyed_wherever_the_padding_is",
    "test_what_onnx_does_not_know_runs_as_a_scan_and_says_so",
    "test_no_time_steps_leave_the_states_as_they_are",
    # LiteRT
    "test_every_cell_at_several_lengths",
    "test_every_kind_of_padding_in_every_direction",
    "test_int8_is_smaller_and_its_cost_is_reported",
    # OpenVINO
    "test_operators_of_its_own",
    "test_other_activations_and_cells_run_as_scans",
    # of several formats
    "test_export_in_a_process_of_its_own",
    "test_missing_package_is_named_with_the_command",
    "test_missing_packages_come_with_the_command",
}


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="left out for time; make test-all runs it")
    for item in items:
        of_files = item.path.name.startswith("test_deploy")
        if of_files and item.originalname not in EXPORTED and not os.environ.get("ALL_TESTS"):
            item.add_marker(skip)


def pytest_collection_finish():
    """What is imported by now stays. `keras.utils.clear_session`, which runs before every test and
    every trial of a search, need not look through it for garbage each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Every test starts from the same seeds, names and dtype policy."""
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
