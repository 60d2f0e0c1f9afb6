"""Imports packages once, then runs each requested program in a fork.

The arguments are the names of packages to import, in addition to Beam, NumPy and the library.

A request is one line of JSON, `{"file": ..., "limit": seconds, "draw": direction}`, and so is the response.
The output of the program is written beside its file, to `.out` and `.err`, and its diagram to `.mmd`. A new
interpreter needs seconds for its imports; a fork takes milliseconds, with the same isolation between blocks.

Don't start threads before the fork.
"""

import atexit
import gc
import importlib
import io
import json
import logging
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path


def warm_up() -> None:
    """Import the packages that nearly every page imports, without their objects in garbage collection."""
    gc.disable()
    import diagram  # noqa: F401

    del sys.path[0]  # this file's directory, which programs on pages must not see
    logging.disable(logging.WARNING)
    import apache_beam  # noqa: F401
    import numpy  # noqa: F401

    import runinference  # noqa: F401

    for name in sys.argv[1:]:
        importlib.import_module(name)
    logging.disable(logging.NOTSET)
    gc.freeze()
    gc.enable()


def run_program(file: Path, draw: str | None) -> int:
    """Run a file in the fork as a new interpreter would, and return the exit code."""
    if draw:
        sys.modules["diagram"].draw_first_pipeline(file.with_suffix(".mmd"), draw)
    os.setsid()
    os.chdir(file.parent)
    for number, name in (
        (0, os.devnull),
        (1, file.with_suffix(".out")),
        (2, file.with_suffix(".err")),
    ):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o644), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")  # noqa: SIM115
    sys.argv = [file.name]
    sys.path.insert(0, str(file.parent))
    main = types.ModuleType("__main__")
    main.__file__ = str(file)
    sys.modules["__main__"] = main
    code = 0
    try:
        exec(compile(file.read_text("utf-8"), file.name, "exec"), main.__dict__)
    except SystemExit as error:
        if error.code not in (None, 0):
            code = error.code if isinstance(error.code, int) else 1
            print("" if isinstance(error.code, int) else error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def wait(child: int, limit: float) -> int:
    """Return the exit code of the fork, or 124 if it was killed after `limit` seconds."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def serve_requests() -> None:
    responses = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = run_program(Path(request["file"]), request["draw"])
            finally:
                os._exit(code)
        code = wait(child, request["limit"])
        responses.write(json.dumps({"code": code, "seconds": time.perf_counter() - began}) + "\n")
        responses.flush()


if __name__ == "__main__":
    warm_up()
    serve_requests()
