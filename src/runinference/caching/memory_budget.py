"""The model manager: one budget of memory for the models of all steps that ask for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from runinference.caching.model_cache import CacheLimits
from runinference.errors import UnknownOptionError, suggest

_FIELDS = {
    "max_models": "models",
    "max_model_bytes": "n_bytes",
    "wait_timeout_seconds": "wait_secs",
}
# What tunes Beam's manager for a GPU that it polls: understood, so that a program written for it runs here, but
# of no effect, because this one counts the bytes of the models themselves.
_OF_BEAM = frozenset(
    {
        "monitor",
        "slack_percentage",
        "poll_interval",
        "peak_window_seconds",
        "min_data_points",
        "smoothing_factor",
        "eviction_cooldown_seconds",
        "min_model_copies",
        "lock_timeout_seconds",
        "verbose_logging",
    }
)


def limits_from_args(arguments: Mapping[str, Any]) -> CacheLimits:
    """The budget that ``model_manager_args`` describe; by default three quarters of the memory there is.

    >>> limits_from_args({"max_models": 2}).models
    2

    Raises:
        UnknownOptionError: An argument is not known.
    """
    for name in arguments:
        if name not in _FIELDS and name not in _OF_BEAM:
            known = [*_FIELDS, *sorted(_OF_BEAM)]
            raise UnknownOptionError(f"model_manager_args has no {name!r}.{suggest(name, known)}")
    fields = {_FIELDS[name]: value for name, value in arguments.items() if name in _FIELDS}
    if "models" not in fields and "n_bytes" not in fields:
        fields["n_bytes"] = available_memory_bytes() * 3 // 4
    return CacheLimits(**fields)


def available_memory_bytes(root: Path = Path("/")) -> int:
    """The memory models can live in: of the first GPU if PyTorch sees one, else of the machine or the container.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits_of_container(root)])


def resident_bytes() -> int:
    """The memory this process holds now; where the system does not tell, the most it ever held."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _limits_of_container(root: Path) -> Iterator[int]:
    """The bytes that the control groups of this process may use, those around them too; versions 1 and 2.

    In a container the path of a group may be that outside of it; then the mounted root is the container's own.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mounts = (
            ["sys/fs/cgroup/memory"] if controllers else ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        )
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = PurePosixPath(path.lstrip("/"))
        for mount, each in product(mounts, [group, *group.parents]):
            limit = _read(root / mount / each / name).strip()
            if limit.isdecimal():  # else there is none, or it is "max"
                yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
