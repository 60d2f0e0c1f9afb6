"""The memory budget of the model manager, the memory of this machine, and the memory that a model takes."""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType
from typing import Any

from runinference.caching.model_cache import CacheLimits
from runinference.errors import UnknownOptionError, suggest

_LIMITS = {
    "max_models": "max_models",
    "max_model_bytes": "max_bytes",
    "wait_timeout_seconds": "wait_secs",
}
# Accepted for compatibility, and ignored: they tune how Beam's model manager polls a GPU.
_BEAM_ONLY = frozenset(
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


@dataclass(frozen=True)
class ManagedLimits(CacheLimits):
    """The limits of the model manager. Without any, a worker gives models three quarters of its own memory."""

    def on_worker(self) -> CacheLimits:
        max_bytes = self.max_bytes
        if self.max_models is None and max_bytes is None:
            max_bytes = available_memory_bytes() * 3 // 4
        return CacheLimits(self.max_models, max_bytes, self.wait_secs)


def limits_from_args(arguments: Mapping[str, Any]) -> ManagedLimits:
    """Convert ``model_manager_args`` to cache limits.

    >>> limits_from_args({"max_models": 2}).max_models
    2
    """
    for name in arguments:
        if name not in _LIMITS and name not in _BEAM_ONLY:
            known = [*_LIMITS, *sorted(_BEAM_ONLY)]
            raise UnknownOptionError(f"model_manager_args has no {name!r}.{suggest(name, known)}")
    return ManagedLimits(
        **{_LIMITS[name]: value for name, value in arguments.items() if name in _LIMITS}
    )


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory of the first GPU that PyTorch finds, else of the container or machine (below ``root``)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_container_limits(root)])


def _container_limits(root: Path) -> Iterator[int]:
    """Yield the memory limits of the control groups (v1 and v2) of this process and of their parents.

    In a container, ``/proc/self/cgroup`` may show the path on the host. The limit is then that of the mount.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        is_v1 = bool(controllers)
        mounts = ["sys/fs/cgroup/memory"] if is_v1 else ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
        name = "memory.limit_in_bytes" if is_v1 else "memory.max"
        group = PurePosixPath(path.lstrip("/"))
        for mount, each in itertools.product(mounts, [group, *group.parents]):
            limit = _read(root / mount / each / name).strip()
            if limit.isdecimal():  # otherwise the file is missing or contains "max"
                yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def estimate_model_bytes(handler: Any, model: Any) -> int:
    """Estimate the memory of a loaded model: its arrays and objects or, if it is larger, the file it comes from.

    Libraries that are not written in Python hide their memory, and most of it is what the file holds. How much the
    process grew would count what other threads allocated meanwhile.
    """
    estimate = getattr(handler, "get_model_bytes", None)
    return int(model_bytes(model) if estimate is None else estimate(model))


def model_bytes(model: Any) -> int:
    """Estimate the memory of a model from the parameters, arrays and objects that Python can reach.

    >>> model_bytes({"weights": np.zeros(1000)}) // 1000
    8
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return sum(map(_nbytes, itertools.chain(model.parameters(), model.buffers())))
    seen: set[int] = set()
    total, found = 0, [model]
    while found and len(seen) < _MAX_OBJECTS:
        new = {id(x): x for x in found if id(x) not in seen and not issubclass(type(x), _SKIPPED)}
        sample = list(new.values())[: _MAX_OBJECTS - len(seen)]
        seen.update(map(id, sample))
        n_bytes = sum(max(_sizeof(x), _nbytes(x)) for x in sample)
        total += n_bytes * len(new) // max(len(sample), 1)
        found = gc.get_referents(*sample)
    return total


_SKIPPED = (type, ModuleType, FunctionType, BuiltinFunctionType)
_MAX_OBJECTS = 100_000


def _sizeof(value: Any) -> int:
    # A __sizeof__ written in Python could call a server, as that of a remote proxy, or record the call (Mock).
    method = type(value).__sizeof__
    return (method if isinstance(method, MethodDescriptorType) else object.__sizeof__)(value)


def _nbytes(value: Any) -> int:
    if not hasattr(type(value), "nbytes"):
        return 0
    try:
        return int(value.nbytes)
    except Exception:  # sparse tensors raise
        return 0
