"""Command-line arguments and output that the benchmark commands share."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console


def make_parser(module, description, workloads, rounds, path):
    """Return a parser for the arguments of all commands.

    Args:
        module: The module to run with `python -m`.
        description: What the command does.
        workloads: The names of its workloads.
        rounds: The default number of rounds.
        path: The default path of the JSON file.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument(
        "--only",
        choices=workloads,
        nargs="+",
        metavar="NAME",
        help=f"workloads to run; default: all of {', '.join(workloads)}",
    )
    parser.add_argument(
        "--rounds", type=_positive_int, default=rounds, help="rounds after a warm-up round"
    )
    parser.add_argument(
        "--json", type=Path, default=Path(path), help=f"file for the numbers; default: {path}"
    )
    return parser


def _positive_int(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def make_console():
    """Return a console that is wide enough for the tables, even if the output is a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def write_numbers(path, numbers):
    """Write the numbers to a JSON file, and create its directory if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
