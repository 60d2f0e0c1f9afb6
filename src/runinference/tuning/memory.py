"""The peak memory of model calls."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


class PeakMemory:
    """The peak memory since this object was created.

    It is that of PyTorch's GPU if the process uses one, otherwise that of the process (on Linux).
    """

    def __init__(self) -> None:
        self._is_measurable = True
        if cuda := _get_cuda():
            cuda.reset_peak_memory_stats()
            return
        try:
            (_PROCESS / "clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        except OSError:
            self._is_measurable = False

    def read(self) -> int | None:
        """Return the peak in bytes, or None if it can't be measured on this machine."""
        if cuda := _get_cuda():
            return int(cuda.max_memory_allocated())
        if not self._is_measurable:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None


def _get_cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
