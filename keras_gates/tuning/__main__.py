"""The command line: one search in several processes, on one machine or several.

On one machine, two processes, kept alive until the search is over:

    python -m keras_gates.tuning launch --workers 2 search.py --epochs 20

On several machines, which all see the folder of the search, one command each:

    python -m keras_gates.tuning worker --id 0 --workers 2 search.py --epochs 20
    python -m keras_gates.tuning worker --id 1 --workers 2 search.py --epochs 20

The script is the same that runs alone. What follows `tuner.search(...)` in it happens in worker 0
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
    for name, text in (
        ("launch", "run all workers on this machine, and keep them alive"),
        ("worker", "run one worker; its id is the same when it is started again"),
    ):
        example = next(line for line in __doc__.splitlines() if f"tuning {name} " in line)
        command = commands.add_parser(name, help=text, epilog=f"Example: {example.strip()}")
        if name == "worker":
            command.add_argument("--id", type=_whole(0), required=True, metavar="K", help="from 0")
        command.add_argument(
            "--workers", type=_whole(1), required=True, metavar="N", help="how many there are"
        )
        command.add_argument("script", help="a Python script with one search")
        command.add_argument(
            "arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments"
        )
    arguments = parser.parse_args(argv)
    if not os.path.isfile(arguments.script):
        parser.error(f"script: there is no file {arguments.script!r}")
    if arguments.command == "worker" and arguments.id >= arguments.workers:
        parser.error(f"--id: must be below --workers {arguments.workers}, not {arguments.id}")
    return arguments


def _whole(least):
    def number(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, not {text!r}")
        return int(text)

    return number


def main(argv=None):
    """Runs the command; returns the exit status. A worker takes the place of this process, so that
    the script starts as it does alone, and signals reach it."""
    arguments = parse_arguments(argv)
    if arguments.command == "launch":
        return launch.launch(arguments.script, arguments.arguments, arguments.workers)
    command = [sys.executable, arguments.script, *arguments.arguments]
    own = roles.environment(arguments.id, arguments.workers)
    return os.execve(sys.executable, command, {**os.environ, **own})


if __name__ == "__main__":
    sys.exit(main())
