"""The command ``runinference``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from runinference.errors import OptionError, RunInferenceError, TuningError
from runinference.tuning.inputs import load_elements, load_handler
from runinference.tuning.result import check_plot_path
from runinference.tuning.tuner import tune

_DESCRIPTION = """\
Measure a handler with several batch sizes and other options, print a table and the recommended
options, and write a plot. Exit codes: 0 if the handler was measured, 1 if it fails, 2 if an
argument is invalid.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with arguments, by default those of this process, and return its exit code."""
    args = _make_parser().parse_args(arguments)
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as with `python -m`
    try:
        _tune(args)
    except TuningError as error:
        return _fail(error, 1)
    except RunInferenceError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runinference")
    commands = parser.add_subparsers(title="commands", required=True)
    tuning = commands.add_parser(
        "tune", help="measure batch sizes and other options of a handler", description=_DESCRIPTION
    )
    tuning.add_argument(
        "handler", help="module:attribute of a handler, or of a function that returns one"
    )
    tuning.add_argument(
        "elements",
        help="sample elements: module:attribute of a list or of a function that returns an iterable, or a file: "
        ".jsonl, .csv (dictionaries), .npy (rows), .txt (lines)",
    )
    tuning.add_argument(
        "--options",
        metavar="NAME",
        nargs="*",
        help="options to measure besides the batch size: autocast, compile, max_concurrent_requests "
        "(default: those that apply to the handler and its device)",
    )
    tuning.add_argument(
        "--inference-args", metavar="JSON", type=_parse_object, help="arguments for the model call"
    )
    tuning.add_argument(
        "--time-limit",
        metavar="SECONDS",
        type=float,
        default=60,
        help="time for the measurements (default: 60)",
    )
    tuning.add_argument(
        "--rounds", metavar="N", type=int, default=5, help="rounds of measurements (default: 5)"
    )
    tuning.add_argument(
        "--plot",
        metavar="FILE",
        default="runinference-tune.png",
        help="PNG or SVG file for the plot (default: runinference-tune.png)",
    )
    tuning.add_argument("--no-plot", action="store_true", help="write no plot")
    return parser


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _tune(args: argparse.Namespace) -> None:
    if not args.no_plot:
        check_plot_path(args.plot)
    handler, elements = load_handler(args.handler), load_elements(args.elements)
    result = tune(
        handler,
        elements,
        inference_args=args.inference_args,
        options=args.options,
        time_limit=args.time_limit,
        rounds=args.rounds,
        progress=_show,
    )
    _show("")
    print(result)
    if args.no_plot:
        return
    try:
        result.plot(args.plot)
    except ImportError as error:
        print(f"No plot was written. {error}", file=sys.stderr)
    except OSError as error:
        raise OptionError(f"The plot can't be written: {error}") from error
    else:
        print(f"Plot: {args.plot}")


def _show(text: str) -> None:
    """Show the progress on one line of a terminal, or on a line for each step elsewhere."""
    if sys.stderr.isatty():
        line = text.replace("\n", " ")[: os.get_terminal_size(sys.stderr.fileno()).columns - 1]
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def _fail(message: object, code: int) -> int:
    _show("")
    print(f"runinference: {message}", file=sys.stderr)
    return code
