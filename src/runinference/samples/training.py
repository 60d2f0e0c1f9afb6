"""Train PyTorch models reproducibly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def reproducible() -> Iterator[None]:
    """Seed PyTorch and use a single thread, because the order of sums changes the weights."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def fit(model: Any, losses: Iterable[Any], steps: int, max_lr: float) -> None:
    """Take one optimizer step per loss, with a one-cycle learning rate. ``losses`` is computed lazily."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=steps)
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
