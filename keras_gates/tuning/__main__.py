"""The command line: one search on several processes or machines.

On one machine, two workers, until the search is over:

    python -m keras_gates.tuning launch --workers 2 search.py --epochs 20

On several, which all see the folder of the search, one command each:

    python -m keras_gates.tuning chief --address 0.0.0.0:8000 --workers 2 search.py --epochs 20
    python -m keras_gates.tuning worker --address node7:8000 --id 0 search.py --epochs 20
    python -m keras_gates.tuning worker --address node7:8000 --id 1 search.py --epochs 20

The script is the same that runs alone. What follows `tuner.search(...)` in it happens in the chief
alone. The same commands once more go on with a search that was broken off.
"""

import argparse
import os
import sys

from keras_gates.tuning import launch, roles


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m keras_gates.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name, text):
        examples = [line.strip() for line in __doc__.splitlines() if f"tuning {name} " in line]
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"Example: {examples[0]}",
        )
        if name != "launch":
            command.add_argument(
                "--address",
                type=_address,
                required=True,
                metavar="HOST:PORT",
                help="where the chief listens; for itself 0.0.0.0 is any way to this machine",
            )
        return command

    command = add("launch", "run a chief and its workers on this machine, and keep them alive")
    command.add_argument("--workers", type=_whole(1), required=True, metavar="N", help="how many")
    command.add_argument(
        "--port", type=_whole(1), help="where the chief listens; default: a free one"
    )
    command = add("chief", "hand out the trials, and do what the script does after the search")
    command.add_argument(
        "--workers",
        type=_whole(1),
        metavar="N",
        help="their ids are 0 to N - 1; trials of others, from before, are handed out anew",
    )
    command = add("worker", "run trials")
    command.add_argument(
        "--id", type=_whole(0), required=True, metavar="K", help="the same when it is started again"
    )
    command.add_argument(
        "--patience",
        type=_whole(1),
        metavar="SECONDS",
        help="how long to wait for a chief that does not answer; default: 3600",
    )
    for command in commands.choices.values():
        command.add_argument("script", help="a Python script with one search")
        command.add_argument(
            "arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments"
        )
    arguments = parser.parse_args(argv)
    if not os.path.isfile(arguments.script):
        parser.error(f"script: there is no file {arguments.script!r}")
    return arguments


def _whole(least):
    def number(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, not {text!r}")
        return int(text)

    return number


def _address(text):
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, not {text!r}")
    return host, int(port)


def main(argv=None):
    """Runs the command; returns the exit status. A chief or worker takes the place of this process,
    so that the script starts as it does alone, and signals reach it."""
    arguments = parse_arguments(argv)
    if arguments.command == "launch":
        return launch.launch(
            arguments.script, arguments.arguments, arguments.workers, arguments.port
        )
    if arguments.command == "chief":
        own = launch.environment(roles.CHIEF, *arguments.address, arguments.workers)
    else:
        own = launch.environment(roles.worker_id(arguments.id), *arguments.address)
        if arguments.patience:
            own[roles.PATIENCE] = str(arguments.patience)
    command = [sys.executable, arguments.script, *arguments.arguments]
    return os.execve(sys.executable, command, {**os.environ, **own})


if __name__ == "__main__":
    sys.exit(main())
