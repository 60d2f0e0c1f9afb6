"""Measure cases in a new process, which is killed if a contender takes too long, and started again without it."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection

from benchmarks.harness import CLOCKS, ONCE, Case, measure
from benchmarks.report import as_json

#: The limit for importing modules and creating a case.
SETUP_SECS = 300


@dataclass(frozen=True)
class Settings:
    """How to measure cases.

    Attributes:
        rounds: The number of rounds after the warm-up.
        clock: A key of `CLOCKS`.
        case_secs: Cases that take less time run more rounds.
        run_secs: The time limit of one run of a contender, check included.
    """

    rounds: int
    clock: str = "wall"
    case_secs: float = 0
    run_secs: float = 90


class WorkloadError(Exception):
    """The cases of a workload can't be created."""


def preload(modules: Iterable[str]) -> None:
    """Import modules once, before the first process starts, instead of in each process."""
    _CONTEXT.set_forkserver_preload([*modules])


def measure_cases(
    make_cases: Callable[[], Iterable[Case]],
    settings: Settings,
    show: Callable[[str], None] = lambda progress: None,
) -> Iterator[dict]:
    """Yield the numbers of each case, for the JSON file.

    A contender that fails or takes too long has a reason in `not_measured` instead of numbers.

    Args:
        make_cases: A function that can be pickled.
        settings: How to measure.
        show: Called with a line of text before each run.

    Raises:
        WorkloadError: A case can't be created.
    """
    n_done, problems, is_complete = 0, {}, False
    while not is_complete:
        contender = None
        with _start(_send_cases, make_cases, n_done, problems, settings) as connection:
            while True:
                limit = settings.run_secs if contender else SETUP_SECS
                try:
                    if not connection.poll(limit):
                        problem = f"took more than {limit:g} s"
                        break
                    message = connection.recv()
                except EOFError:
                    problem = "its process ended"
                    break
                if isinstance(message, _Run):
                    contender = message.contender
                    show(message.progress)
                elif isinstance(message, dict):
                    yield message
                    n_done, problems, contender = n_done + 1, {}, None
                else:
                    problem, is_complete = message, message is None
                    break
        if not is_complete:
            if contender is None:
                raise WorkloadError(problem)
            problems = {**problems, contender: problem}


@dataclass(frozen=True)
class _Run:
    contender: str
    progress: str


def _send_cases(
    connection: Connection,
    make_cases: Callable[[], Iterable[Case]],
    n_done: int,
    problems: Mapping[str, str],
    settings: Settings,
) -> None:
    """Send the numbers of the cases, and None at the end, or the text of an error."""
    os.setsid()  # so that the processes that contenders start end with this one
    try:
        for case in islice(make_cases(), n_done, None):
            connection.send(_measure(case, problems, settings, connection))
            problems = {}
        connection.send(None)
    except Exception as error:
        traceback.print_exc()
        connection.send(f"raised {type(error).__name__}: {error}"[:500])


def _measure(
    case: Case, problems: Mapping[str, str], settings: Settings, connection: Connection
) -> dict:
    label = f"{case.workload}, {case.variant}"
    case = replace(
        case,
        runs={name: run for name, run in case.runs.items() if name not in problems},
        measure_once=dict if ONCE in problems else case.measure_once,
        not_measured={**case.not_measured, **problems},
    )
    measured = measure(
        case,
        settings.rounds,
        CLOCKS[settings.clock],
        lambda contender, progress: connection.send(_Run(contender, f"{label}: {progress}")),
        settings.case_secs,
    )
    return as_json(measured)


#: New processes are forks of a process without threads.
_CONTEXT = multiprocessing.get_context("forkserver")


@contextmanager
def _start(function: Callable[..., None], *args: object) -> Iterator[Connection]:
    """Call a function with a connection in a new process. At the end, kill it and all processes it started."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=function, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        ours.close()
