"""Searches by several processes, some of which are killed: every trial is there exactly once."""

import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent import futures

import grpc
import keras_tuner
import pytest
from helpers import BACKEND

from keras_gates import tuning
from keras_gates.tuning import __main__ as command_line
from keras_gates.tuning import chief, launch, oracles, records, roles

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough")

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
LONG = 300  # seconds, on a busy machine


def wait_until(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "It took too long."
        time.sleep(0.05)


def alive(process):
    try:
        os.kill(process, 0)
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def write_script(folder, code):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(code))
    return path


# ---------------------------------------------------------------------- whole searches

# Trials that train nothing. The second training of those with a > 0 waits for a file.
SEARCH = """
    import os, pathlib, sys, time
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from keras_gates import tuning

    folder, name = pathlib.Path(sys.argv[1]), os.environ["KERASTUNER_TUNER_ID"]
    (folder / f"{name}.pid").write_text(str(os.getpid()))

    class Waiting(tuning.GridSearch):
        def _build_and_fit_model(self, trial, *args, **kwargs):
            a = trial.hyperparameters.get("a")
            with open(folder / "ran", "a") as ran:
                ran.write(f"a={a} seed={self._seed}\\n")
            while a and self._seed and not (folder / "go").exists():
                time.sleep(0.05)
            if a == 3:
                raise RuntimeError("no such luck")
            return float("nan") if a == 2 else float(a)

    def build(hp):
        hp.Choice("a", [0, 1, 2, 3])

    tuner = Waiting(build, "loss", directory=folder, project_name="p", seed=0,
                    executions_per_trial=2)
    tuner.search(verbose=0)
    with open(folder / "after", "a") as after:
        after.write(f"{name}\\n")
"""
OUTCOMES = {0: "finished", 1: "finished", 2: "diverged", 3: "raised"}


@pytest.mark.slow
def test_killed_with_all_its_children_and_resumed_with_fewer_workers(tmp_path):
    script = write_script(tmp_path, SEARCH)
    command = ["-m", "keras_gates.tuning", "launch", "--workers", "2", script, tmp_path]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    launcher = subprocess.Popen([sys.executable, *map(str, command)], **quiet)

    def ran():
        path = tmp_path / "ran"
        return path.read_text().splitlines() if path.exists() else []

    try:
        wait_until(lambda: {"a=1 seed=1", "a=2 seed=1"} <= set(ran()))
    finally:
        launcher.kill()
        launcher.wait()
    processes = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert len(processes) == 3
    wait_until(lambda: not any(map(alive, processes)))

    (tmp_path / "go").touch()
    assert launch.launch(script, [str(tmp_path)], workers=1) == 0
    found = records.read_search(tmp_path / "p").trials
    assert [(t.values["a"], t.outcome) for t in found] == list(OUTCOMES.items())
    state = json.loads((tmp_path / "p" / "oracle.json").read_text())
    assert sorted(state["end_order"]) == [t.trial_id for t in found]
    # What had been trained was not trained again, and what was cut short was once more.
    twice = [line for line in ran() if ran().count(line) > 1]
    assert sorted(twice) == sorted(2 * ["a=1 seed=1", "a=2 seed=1"])
    assert (tmp_path / "after").read_text() == "chief\n"


FATAL = """
    import os, pathlib, signal, sys
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from keras_gates import tuning

    class Dying(tuning.GridSearch):
        def _build_and_fit_model(self, trial, *args, **kwargs):
            a = trial.hyperparameters.get("a")
            with open(sys.argv[1] + "/ran", "a") as ran:
                ran.write(f"a={a} seed={self._seed}\\n")
            if a in (1, 2) and self._seed:
                os.kill(os.getpid(), signal.SIGKILL)  # as a system out of memory does
            return float(a)

    def build(hp):
        hp.Choice("a", [0, 1, 2, 3])

    tuner = Dying(build, "loss", directory=sys.argv[1], project_name="p", executions_per_trial=2)
    tuner.search(verbose=0)
"""


def test_trials_that_end_their_process_do_not_end_the_search(tmp_path):
    assert launch.launch(write_script(tmp_path, FATAL), [str(tmp_path)], workers=1) == 0
    found = records.read_search(tmp_path / "p").trials
    outcomes = ["finished", "raised", "raised", "finished"]
    assert [(t.values["a"], t.outcome) for t in found] == list(enumerate(outcomes))
    for trial in found[1:3]:
        assert trial.reason.startswith("its process died 2 times in this training")
        assert [e.outcome for e in trial.executions] == ["finished", "raised"]
    ran = (tmp_path / "ran").read_text().splitlines()
    assert [ran.count(f"a={a} seed={seed}") for a in range(4) for seed in (0, 1)] == [
        *(1, 1),
        *(1, 2),
        *(1, 2),
        *(1, 1),
    ]
    assert not list(tmp_path.glob(f"p/trial_*/{records.BEGUN}"))


def test_deaths_are_counted_per_training_and_launch(tmp_path):
    assert [records.begin(tmp_path, 0, "one") for _ in range(3)] == [0, 1, 2]
    assert records.begin(tmp_path, 0, "another") == 0  # the first was interrupted, maybe
    assert records.begin(tmp_path, 1, "another") == 0
    records.end(tmp_path)
    assert records.begin(tmp_path, 1, "another") == 0


@pytest.fixture(scope="module")
def example():
    path = EXAMPLES / "search_distributed.py"
    spec = importlib.util.spec_from_file_location("example_search_distributed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_example_kills_a_worker_and_the_chief(example, tmp_path, capsys):
    found = example.main(["--trials", "3", "--epochs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [row["trial"] for row in found["trials"]] == ["0", "1", "2"]
    assert {row["outcome"] for row in found["trials"]} == {"finished"}
    assert {row["recorded"] for row in found["trials"]} == {2}
    assert sorted(found["ended"]) == found["reported"] == ["0", "1", "2"]
    assert found["unaccounted"] == 0
    for row in found["trials"]:
        assert row["begun"] == (3 if row["trial"] == found["interrupted"] else 2)
    assert "every one ended and reported once: yes" in printed
    assert "trainings: 6 on record, 7 begun, 1 of them cut short" in printed
    assert printed.count("Best trials") == 1
    for name in found["killed"]:
        assert f"launch   | {name} has died: killed by SIGKILL. It is started again." in printed


def test_example_refuses_a_used_folder(example, tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    with pytest.raises(SystemExit):
        example.main(["--out", str(tmp_path)])
    assert "there is a search in" in capsys.readouterr().err


# ---------------------------------------------------------------------- chief and client


@pytest.fixture
def address(monkeypatch):
    port = launch._free_port()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(port))
    monkeypatch.setattr(chief, "_served", False)
    monkeypatch.setattr(chief, "FAREWELL", 1.0)
    return port


def as_worker(monkeypatch, number=0):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", roles.worker_id(number))


def as_chief(monkeypatch):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", roles.CHIEF)


def oracle_of(folder, max_trials=2, make=oracles.GridSearchOracle, **options):
    """An oracle as a chief has it, new or from what is on disk."""
    oracle = make("loss", max_trials=max_trials, seed=0, **options)
    oracle._set_project_dir(str(folder), "p")
    oracle._display.verbose = 0
    oracle.hyperparameters.Choice("a", [0, 1, 2, 3])
    if (pathlib.Path(folder) / "p" / "oracle.json").exists():
        oracle.reload()
    return oracle


@contextlib.contextmanager
def served(oracle, port):
    """A chief that is gone at the end, whoever is waiting for an answer."""
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(oracle), server)
    assert server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


def client_of(folder):
    from keras_gates.tuning.client import Client

    return Client(oracle_of(folder / "nothing"))


def test_a_chief_lost_between_result_and_end_of_a_trial(tmp_path, address, monkeypatch):
    as_worker(monkeypatch)
    client = client_of(tmp_path)
    as_chief(monkeypatch)
    with served(oracle_of(tmp_path), address):
        trial = client.create_trial("worker-0")
        client.update_trial(trial.trial_id, {"loss": 0.5})
    trial.status = "COMPLETED"
    with served(oracle_of(tmp_path), address):
        assert client.create_trial("worker-0").trial_id == trial.trial_id  # the same one
        client.end_trial(trial)
        client.end_trial(trial)  # once more, as after an answer that was lost
    oracle = oracle_of(tmp_path)
    assert oracle.end_order == [trial.trial_id]
    assert oracle.trials[trial.trial_id].score == 0.5
    assert not oracle.ongoing_trials


def test_a_chief_lost_with_a_call_in_flight(tmp_path, address, monkeypatch):
    as_worker(monkeypatch)
    client = client_of(tmp_path)
    as_chief(monkeypatch)
    oracle = oracle_of(tmp_path)
    asked, never = threading.Event(), threading.Event()

    def stuck(*args, **kwargs):
        asked.set()
        never.wait(LONG)

    with futures.ThreadPoolExecutor(1) as pool:
        with served(oracle, address):
            trial = client.create_trial("worker-0")
            oracle.update_trial = stuck
            answer = pool.submit(client.update_trial, trial.trial_id, {"loss": 0.25})
            assert asked.wait(LONG)
        with served(oracle_of(tmp_path), address):
            assert answer.result(LONG).trial_id == trial.trial_id
        never.set()
    oracle = oracle_of(tmp_path)
    assert oracle.trials[trial.trial_id].metrics.get_best_value("loss") == 0.25


def test_the_end_of_a_trial_that_is_to_be_tried_again_counts_once(tmp_path, monkeypatch, address):
    as_chief(monkeypatch)
    oracle = oracle_of(tmp_path, max_retries_per_trial=2)
    trial = oracle.create_trial("worker-0")
    trial.status = "INVALID"
    for _ in range(2):
        oracle.end_trial(trial)
    assert oracle._retry_queue == [trial.trial_id]
    assert oracle._run_times[trial.trial_id] == 1
    assert not oracle.is_over()


def test_trials_of_workers_that_are_gone_go_to_others(tmp_path, address, monkeypatch):
    as_chief(monkeypatch)
    oracle = oracle_of(tmp_path)
    first, second = (oracle.create_trial(name).trial_id for name in ("worker-0", "worker-1"))
    kept = oracle_of(tmp_path)  # it is not known how many there are
    assert sorted(kept.ongoing_trials) == ["worker-0", "worker-1"]
    monkeypatch.setenv(roles.WORKERS, "1")
    oracle = oracle_of(tmp_path)
    assert list(oracle.ongoing_trials) == ["worker-0"]
    ran = []
    while (trial := oracle.create_trial("worker-0")).status == "RUNNING":
        ran.append(trial.trial_id)
        oracle.update_trial(trial.trial_id, {"loss": 1.0})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert ran == [first, second]
    assert oracle.is_over()


def test_a_search_that_is_over_is_over_for_who_comes_late(tmp_path, address, monkeypatch):
    """The chief that is started again, and the worker that finds no chief."""

    class Arithmetic(tuning.GridSearch):
        def _build_and_fit_model(self, trial, *args, **kwargs):
            return float(trial.hyperparameters.get("a"))

    def tuner(max_trials):
        options = {"directory": tmp_path, "project_name": "p", "seed": 0}
        return Arithmetic(lambda hp: hp.Choice("a", [0, 1, 2, 3]), "loss", max_trials, **options)

    with monkeypatch.context() as alone:
        alone.delenv("KERASTUNER_ORACLE_IP")
        tuner(2).search(verbose=0)
    as_chief(monkeypatch)  # which goes on with what was begun alone
    again = tuner(2)
    again.search(verbose=0)
    assert len(again.oracle.end_order) == 2
    with pytest.raises(RuntimeError, match="a script runs one search"):
        again.search(verbose=0)
    as_worker(monkeypatch)
    with pytest.raises(SystemExit) as left:
        tuner(2).search(verbose=0)
    assert left.value.code == 0
    # With more trials it is not over, and there is no chief.
    monkeypatch.setenv(roles.PATIENCE, "1")
    lost = rf"No chief has answered at 127\.0\.0\.1:{address} for 1 seconds"
    with pytest.raises(keras_tuner.errors.FatalRuntimeError, match=lost):
        tuner(3).search(verbose=0)
    assert len(records.read_search(tmp_path / "p").trials) == 2


def test_a_port_that_is_taken(tmp_path, address, monkeypatch):
    as_chief(monkeypatch)
    with socket.socket() as other:
        other.bind(("127.0.0.1", address))
        other.listen()
        with pytest.raises(RuntimeError, match=f"cannot listen at 127.0.0.1:{address}"):
            chief.serve(oracle_of(tmp_path))


def test_overwriting_is_refused(tmp_path, address, monkeypatch):
    as_chief(monkeypatch)
    with pytest.raises(ValueError, match="`overwrite=True` cannot be given in a search on several"):
        tuning.RandomSearch(lambda hp: None, "loss", directory=tmp_path, overwrite=True)


# ---------------------------------------------------------------------- the launcher


def test_launch_names_the_processes_and_passes_on_what_they_print(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: range(7), raising=False)
    script = write_script(
        tmp_path,
        """
        import os, pathlib, sys, time
        names = ["TUNER_ID", "ORACLE_IP", "ORACLE_PORT"]
        words = [os.environ["KERASTUNER_" + name] for name in names]
        words += [os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
        print(*words, *sys.argv[1:])
        if words[0] == "chief":
            folder = pathlib.Path(__file__).parent
            while not all((folder / f"worker-{k}").exists() for k in range(3)):
                time.sleep(0.05)
        else:
            (pathlib.Path(__file__).parent / words[0]).touch()
        """,
    )
    assert launch.launch(script, ["--epochs", "3"], workers=3, port=4321) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "chief    | chief 127.0.0.1 4321 4,7 2 --epochs 3" in lines
    for number, device in enumerate("474"):
        name = f"worker-{number}"
        assert f"{name} | {name} 127.0.0.1 4321 {device} 2 --epochs 3" in lines


def test_launch_gives_up_a_script_that_fails(tmp_path, capfd):
    script = write_script(tmp_path, "print('so far')\nraise ValueError('no such luck')")
    assert launch.launch(script, workers=1) == 1
    printed = capfd.readouterr()
    assert "has died 3 times in a row, each time within 300 seconds; the last" in printed.err
    assert "exit status 1. Its last lines:\n    so far\n    Traceback" in printed.err
    assert "    ValueError: no such luck\n" in printed.err
    assert printed.out.count("has died: exit status 1. It is started again.") >= 2


def test_ctrl_c_leaves_no_process_behind(tmp_path, capfd, monkeypatch):
    """Though all of them take no notice of SIGTERM, and have children of their own."""
    monkeypatch.setattr(launch, "GRACE", 1.0)
    script = write_script(
        tmp_path,
        """
        import os, pathlib, signal, subprocess, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        own = subprocess.Popen(["sleep", "1000"])
        aside = pathlib.Path(__file__).parent / f"{os.getpid()}.aside"
        aside.write_text(f"{os.getpid()} {own.pid}")
        aside.rename(aside.with_suffix(".pids"))
        time.sleep(1000)
        """,
    )

    def processes():
        return [int(word) for path in tmp_path.glob("*.pids") for word in path.read_text().split()]

    def interrupt():
        wait_until(lambda: len(processes()) == 6)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert launch.launch(script, workers=2) == 130
    thread.join()
    assert len(processes()) == 6
    wait_until(lambda: not any(map(alive, processes())))
    assert "launch   | interrupted" in capfd.readouterr().out


# ---------------------------------------------------------------------- the command line


def executed(monkeypatch, *arguments):
    """What a command would run, and the variables that it would set."""
    found = []
    monkeypatch.setattr(os, "execve", lambda *given: found.extend(given))
    command_line.main([str(argument) for argument in arguments])
    _, command, variables = found
    assert command[0] == sys.executable
    names = [roles.WORKERS, roles.PATIENCE]
    return command[1:], {
        name: value
        for name, value in variables.items()
        if name.startswith("KERASTUNER_") or name in names
    }


def test_one_command_per_role(tmp_path, monkeypatch):
    script = str(write_script(tmp_path, ""))
    common = ("--address", "node7:8000")
    own = [script, "--id", "5"]
    variables = {"KERASTUNER_ORACLE_IP": "node7", "KERASTUNER_ORACLE_PORT": "8000"}
    assert executed(monkeypatch, "chief", *common, "--workers", 4, *own) == (
        own,
        {**variables, "KERASTUNER_TUNER_ID": "chief", roles.WORKERS: "4"},
    )
    assert executed(monkeypatch, "worker", *common, "--id", 0, "--patience", 60, *own) == (
        own,
        {**variables, "KERASTUNER_TUNER_ID": "worker-0", roles.PATIENCE: "60"},
    )


@pytest.mark.parametrize("command", ["launch", "chief", "worker"])
def test_help_has_an_example_that_is_right(command, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command_line.main([command, "--help"])
    example = capsys.readouterr().out.rpartition("Example: python -m keras_gates.tuning ")[2]
    (tmp_path / "search.py").touch()
    monkeypatch.chdir(tmp_path)
    parsed = command_line.parse_arguments(example.split())
    assert (parsed.command, parsed.arguments) == (command, ["--epochs", "20"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("launch --workers 0 SCRIPT", "argument --workers: must be a whole number >= 1, not '0'"),
        ("launch SCRIPT", "the following arguments are required: --workers"),
        ("launch --workers 2 nowhere.py", "script: there is no file 'nowhere.py'"),
        ("worker --address here --id 0 SCRIPT", "--address: must be HOST:PORT, not 'here'"),
        ("worker --address a:1 --id chief SCRIPT", "must be a whole number >= 0, not 'chief'"),
    ],
)
def test_errors_of_the_command_line(arguments, message, tmp_path, capsys):
    script = str(write_script(tmp_path, ""))
    with pytest.raises(SystemExit) as ended:
        command_line.main(arguments.replace("SCRIPT", script).split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------- clusters


@pytest.fixture
def slurm(tmp_path):
    """Runs tasks of an array job in which `python` only notes what it is called with.

    Each fails the first time.
    """
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\necho "$@" >>"{tmp_path}/$SLURM_ARRAY_TASK_ID.calls"\n'
        f'[ $(wc -l <"{tmp_path}/$SLURM_ARRAY_TASK_ID.calls") -ge 2 ]\n'
    )
    program.chmod(0o755)

    def start(task):
        variables = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "SLURM_ARRAY_JOB_ID": "40007",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_MAX": "2",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURMD_NODENAME": "node7",
            "SEARCH_PAUSE": "0.1",
        }
        command = ["bash", str(EXAMPLES / "cluster" / "slurm.sh"), "script.py", "--epochs", "3"]
        return subprocess.Popen(command, env={**os.environ, **variables})

    return start


def test_slurm_tasks_find_each_other_and_try_again(slurm, tmp_path, monkeypatch):
    tasks = [slurm(task) for task in (1, 2, 0)]  # the chief comes last
    assert [task.wait(LONG) for task in tasks] == [0, 0, 0]
    script = write_script(tmp_path, "")
    monkeypatch.chdir(script.parent)
    found = {}
    for task in range(3):
        first, again = (tmp_path / f"{task}.calls").read_text().splitlines()
        assert first == again
        module, arguments = first.split()[:2], first.split()[2:]
        assert module == ["-m", "keras_gates.tuning"]
        command, found[task] = executed(monkeypatch, *arguments)
        assert command == ["script.py", "--epochs", "3"]
    assert found[0]["KERASTUNER_ORACLE_IP"] == "0.0.0.0"
    assert found[0][roles.WORKERS] == "2"
    for task in (1, 2):
        assert found[task]["KERASTUNER_TUNER_ID"] == roles.worker_id(task - 1)
        assert found[task]["KERASTUNER_ORACLE_IP"] == "node7"
        assert (
            found[task]["KERASTUNER_ORACLE_PORT"] == found[0]["KERASTUNER_ORACLE_PORT"] == "20007"
        )


def test_kubernetes_manifest_fits_together(tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml")
    text = (EXAMPLES / "cluster" / "kubernetes.yaml").read_text()
    manifests = list(yaml.safe_load_all(text))
    named = {(m["kind"], m["metadata"]["name"]): m["spec"] for m in manifests}
    assert len(named) == len(manifests) == 4
    script, found = str(write_script(tmp_path, "")), {}
    for name in ("search-chief", "search-workers"):
        pod = named["Job", name]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["command"] == ["python", "-m", "keras_gates.tuning"]
        assert all(isinstance(argument, str) for argument in container["args"])
        values = {"/app/search.py": script, "$(JOB_COMPLETION_INDEX)": "3"}
        arguments = [values.get(argument, argument) for argument in container["args"]]
        _, found[name] = executed(monkeypatch, *arguments)
        assert pod["restartPolicy"] == "OnFailure"
        claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
        assert ("PersistentVolumeClaim", claim) in named
        assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    one, workers = found["search-chief"], named["Job", "search-workers"]
    assert workers["completionMode"] == "Indexed"
    assert str(workers["completions"]) == str(workers["parallelism"]) == one[roles.WORKERS]
    service = named["Service", found["search-workers"]["KERASTUNER_ORACLE_IP"]]
    labels = named["Job", "search-chief"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    ports = {str(port["port"]) for port in service["ports"]}
    assert ports == {one["KERASTUNER_ORACLE_PORT"]}
    assert found["search-workers"]["KERASTUNER_ORACLE_PORT"] in ports
    assert found["search-workers"]["KERASTUNER_TUNER_ID"] == roles.worker_id(3)
