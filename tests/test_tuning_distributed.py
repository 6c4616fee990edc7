"""Searches by several processes, some of which are killed: every trial is there exactly once."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from helpers import BACKEND

import keras_gates_command
from keras_gates import tuning
from keras_gates.tuning import launch, oracles, records, roles

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
    command = ["-m", "keras_gates", "search", "--workers", "2", script, tmp_path]
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
    assert len(processes) == 2
    wait_until(lambda: not any(map(alive, processes)))

    (tmp_path / "go").touch()
    launch.launch(script, [str(tmp_path)], workers=1)
    found = records.read_search(tmp_path / "p").trials
    assert [(t.values["a"], t.outcome) for t in found] == list(OUTCOMES.items())
    state = json.loads((tmp_path / "p" / "oracle.json").read_text())
    assert sorted(state["end_order"]) == [t.trial_id for t in found]
    # What had been trained was not trained again, and what was cut short was once more.
    twice = [line for line in ran() if ran().count(line) > 1]
    assert sorted(twice) == sorted(2 * ["a=1 seed=1", "a=2 seed=1"])
    assert (tmp_path / "after").read_text() == "worker-0\n"


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


@pytest.mark.slow
def test_trials_that_end_their_process_do_not_end_the_search(tmp_path):
    launch.launch(write_script(tmp_path, FATAL), [str(tmp_path)], workers=1)
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
def test_example_kills_both_workers(example, tmp_path, capsys):
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
        assert f"launch    | {name} has died: killed by SIGKILL. It is started again." in printed


def test_example_refuses_a_used_folder(example, tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    with pytest.raises(SystemExit):
        example.main(["--out", str(tmp_path)])
    assert "there is a search in" in capsys.readouterr().err


# ---------------------------------------------------------------------- one folder


def as_worker(monkeypatch, number=0, of=2):
    for name, value in roles.environment(number, of).items():
        monkeypatch.setenv(name, value)


def oracle_of(folder, max_trials=2, make=oracles.GridSearchOracle, **options):
    """An oracle as a process has it, new or from what is on disk."""
    oracle = make("loss", max_trials=max_trials, seed=0, **options)
    oracle._set_project_dir(str(folder), "p")
    oracle._display.verbose = 0
    oracle.hyperparameters.Choice("a", [0, 1, 2, 3])
    if (pathlib.Path(folder) / "p" / "oracle.json").exists():
        oracle.reload()
    return oracle


def end(oracle, trial, loss):
    oracle.update_trial(trial.trial_id, {"loss": loss})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def test_processes_read_what_others_wrote(tmp_path, monkeypatch):
    as_worker(monkeypatch)
    one, other = oracle_of(tmp_path, 3), oracle_of(tmp_path, 3)
    first, second = one.create_trial("worker-0"), other.create_trial("worker-1")
    assert (first.trial_id, second.trial_id) == ("0", "1")
    assert [t.hyperparameters.values["a"] for t in (first, second)] == [0, 1]
    end(one, first, 0.5)
    third = other.create_trial("worker-1")  # it is still at the one it has
    assert third.trial_id == "1"
    end(other, third, 0.25)
    fourth = one.create_trial("worker-0")
    assert fourth.hyperparameters.values["a"] == 2
    assert other.create_trial("worker-1").status == "STOPPED"
    assert [t.trial_id for t in other.get_best_trials(3)] == ["1", "0"]
    waiting = threading.Thread(target=other.wait)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    end(one, fourth, 1.0)
    waiting.join(LONG)
    assert not waiting.is_alive()
    assert other.end_order == ["0", "1", "2"]


def test_a_worker_lost_between_result_and_end_of_a_trial(tmp_path, monkeypatch):
    as_worker(monkeypatch)
    oracle = oracle_of(tmp_path)
    trial = oracle.create_trial("worker-0")
    oracle.update_trial(trial.trial_id, {"loss": 0.5})
    oracle = oracle_of(tmp_path)
    assert oracle.create_trial("worker-0").trial_id == trial.trial_id  # the same one
    trial.status = "COMPLETED"
    oracle.save = lambda: None  # lost before this
    oracle.end_trial(trial)
    oracle = oracle_of(tmp_path)
    assert oracle.end_order == [trial.trial_id]
    assert oracle.trials[trial.trial_id].score == 0.5
    assert not oracle.ongoing_trials


def test_trials_of_workers_that_are_gone_go_to_others(tmp_path, monkeypatch):
    as_worker(monkeypatch)
    oracle = oracle_of(tmp_path)
    first, second = (oracle.create_trial(name).trial_id for name in ("worker-0", "worker-1"))
    kept = oracle_of(tmp_path)
    assert sorted(kept.ongoing_trials) == ["worker-0", "worker-1"]
    as_worker(monkeypatch, of=1)
    oracle = oracle_of(tmp_path)
    assert list(oracle.ongoing_trials) == ["worker-0"]
    ran = []
    while (trial := oracle.create_trial("worker-0")).status == "RUNNING":
        ran.append(trial.trial_id)
        end(oracle, trial, 1.0)
    assert ran == [first, second]
    oracle.wait()


def test_begun_alone_and_gone_on_with_by_several(tmp_path, monkeypatch, capsys):
    class Arithmetic(tuning.GridSearch):
        def _build_and_fit_model(self, trial, *args, **kwargs):
            return float(trial.hyperparameters.get("a"))

    def tuner(max_trials):
        options = {"directory": tmp_path, "project_name": "p", "seed": 0}
        return Arithmetic(lambda hp: hp.Choice("a", [0, 1, 2, 3]), "loss", max_trials, **options)

    tuner(2).search(verbose=0)
    as_worker(monkeypatch, 1)
    with pytest.raises(SystemExit) as left:
        tuner(3).search(verbose=0)
    assert left.value.code == 0
    as_worker(monkeypatch, 0)
    first = tuner(3)
    first.search(verbose=0)
    assert first.oracle.end_order == ["0", "1", "2"]
    assert "3 trials had ended, 0 had not" in capsys.readouterr().out


def test_a_new_search_does_not_go_on_because_another_worker_was_quicker(
    tmp_path, monkeypatch, capsys
):
    def tuner(number):
        as_worker(monkeypatch, number)
        options = {"directory": tmp_path, "project_name": "p", "seed": 0}
        return tuning.GridSearch(lambda hp: hp.Choice("a", [0, 1, 2, 3]), "loss", **options)

    tuner(1).oracle.create_trial("worker-1")
    first = tuner(0)
    assert "goes on" not in capsys.readouterr().out
    first.oracle.create_trial("worker-0")
    again = tuner(0)
    assert "goes on: 0 trials had ended, 2 had not" in capsys.readouterr().out
    end(again.oracle, again.oracle.create_trial("worker-0"), 1.0)
    tuner(0)
    assert "goes on: 1 trials had ended, 1 had not" in capsys.readouterr().out


def test_what_several_processes_cannot_do_is_refused(tmp_path, monkeypatch):
    as_worker(monkeypatch)
    with pytest.raises(ValueError, match="`overwrite=True` cannot be given in a search by several"):
        tuning.RandomSearch(lambda hp: None, "loss", directory=tmp_path, overwrite=True)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(RuntimeError, match="no chief.*keras-gates search --workers N --worker K"):
        tuning.RandomSearch(lambda hp: None, "loss", directory=tmp_path)


# ---------------------------------------------------------------------- the launcher


def test_launch_names_the_processes_and_passes_on_what_they_print(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: range(7), raising=False)
    script = write_script(
        tmp_path,
        """
        import os, pathlib, sys, time
        names = ["KERASTUNER_TUNER_ID", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"]
        print(*(os.environ[name] for name in names), *sys.argv[1:])
        """,
    )
    with pytest.raises(ChildProcessError, match="script.py has ended and ran no search: it must"):
        launch.launch(script, ["--epochs", "3"], workers=3)
    lines = capfd.readouterr().out.splitlines()
    for number, device in enumerate("474"):
        name = f"worker-{number}"
        assert f"{name}  | {name} {device} 2 --epochs 3" in lines


def test_launch_gives_up_a_script_that_fails(tmp_path, capfd):
    script = write_script(
        tmp_path,
        """
        import os, pathlib
        pathlib.Path(os.environ["KERAS_GATES_LAUNCHED"]).touch()  # as if a search ran
        print('so far', flush=True)
        raise ValueError('no such luck')
        """,
    )
    with pytest.raises(ChildProcessError) as given_up:
        launch.launch(script, workers=1)
    error = str(given_up.value)
    assert "has died 3 times in a row, each time within 300 seconds; the last" in error
    assert "the last time: status 1. Its last lines:\n    so far\n    Traceback" in error
    assert error.endswith("    ValueError: no such luck\n")
    printed = capfd.readouterr()
    assert printed.out == "worker-0  | so far\n" * 3
    assert printed.err.count("has died: status 1. It is started again.") == 2


def test_a_script_that_fails_before_a_search_ends_at_once_and_is_told_once(
    tmp_path, monkeypatch, capsys
):
    script = write_script(tmp_path, "import no_such_module")
    assert keras_gates_command.main(["search", str(script)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("No module named 'no_such_module'") == 1
    assert printed.err.count(" is process ") == 2
    assert printed.err.endswith(
        "error: worker-0 has failed before a search began: status 1. What it printed is above.\n"
    )
    monkeypatch.setattr(launch, "GRACE", 0.5)
    only = write_script(
        tmp_path,
        """
        import os, time
        if os.environ["KERASTUNER_TUNER_ID"] == "worker-1":
            raise SystemExit("not here")
        time.sleep(100)
        """,
    )
    with pytest.raises(ChildProcessError, match="worker-1 has failed .* last lines:\n    not here"):
        launch.launch(only)
    assert "not here" not in capsys.readouterr().err


def test_ctrl_c_tells_that_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "launch", interrupted)
    assert keras_gates_command.main(["search", str(write_script(tmp_path, ""))]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on with the search\n"


def test_ctrl_c_leaves_no_process_behind(tmp_path, monkeypatch):
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
        wait_until(lambda: len(processes()) == 4)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # Which is ignored where a shell has put the tests in the background.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        launch.launch(script, workers=2)
    thread.join()
    signal.signal(signal.SIGINT, previous)
    assert len(processes()) == 4
    wait_until(lambda: not any(map(alive, processes())))


# ---------------------------------------------------------------------- the command line


def executed(monkeypatch, *arguments):
    """What a command would run, and the variables that it would set."""
    found = []
    monkeypatch.setattr(os, "execve", lambda *given: found.extend(given))
    keras_gates_command.main(["search", *map(str, arguments)])
    _, command, variables = found
    assert command[0] == sys.executable
    return command[1:], {name: variables[name] for name in (roles.ID, roles.WORKERS)}


def test_a_worker_runs_the_script_as_it_is(tmp_path, monkeypatch):
    own = [str(write_script(tmp_path, "")), "--worker", "5"]
    assert executed(monkeypatch, "--worker", 1, "--workers", 4, *own) == (
        own,
        roles.environment(1, 4),
    )


def test_a_worker_that_there_is_not_is_refused(tmp_path, capsys):
    script = str(write_script(tmp_path, ""))
    assert keras_gates_command.main(["search", "--workers", "2", "--worker", "2", script]) == 1
    expected = "`--worker` must be from 0 to 1, of 2 workers. Received: --worker=2"
    assert expected in capsys.readouterr().err


# ---------------------------------------------------------------------- clusters


def test_slurm_tasks_try_again(tmp_path, monkeypatch):
    """`keras-gates` only notes what it is called with, and fails the first time."""
    program = tmp_path / "bin" / "keras-gates"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\necho "$@" >>"{tmp_path}/calls"\n[ $(wc -l <"{tmp_path}/calls") -ge 2 ]\n'
    )
    program.chmod(0o755)
    variables = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "5",
        "SEARCH_PAUSE": "0.1",
    }
    command = ["bash", str(EXAMPLES / "cluster" / "slurm.sh"), "script.py", "--epochs", "3"]
    assert subprocess.run(command, env={**os.environ, **variables}, timeout=LONG).returncode == 0
    first, again = (tmp_path / "calls").read_text().splitlines()
    assert first == again
    assert first.split()[0] == "search"
    monkeypatch.chdir(write_script(tmp_path, "").parent)
    assert executed(monkeypatch, *first.split()[1:]) == (
        ["script.py", "--epochs", "3"],
        roles.environment(3, 5),
    )


def test_kubernetes_manifest_fits_together(tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml")
    text = (EXAMPLES / "cluster" / "kubernetes.yaml").read_text()
    claim, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["keras-gates", "search"]
    values = {"/app/search.py": str(write_script(tmp_path, "")), "$(JOB_COMPLETION_INDEX)": "3"}
    arguments = [values.get(argument, argument) for argument in container["args"]]
    _, found = executed(monkeypatch, *arguments)
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert found == roles.environment(3, job["spec"]["completions"])
    assert pod["restartPolicy"] == "OnFailure"
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert container["volumeMounts"][0]["name"] == volume["name"]
