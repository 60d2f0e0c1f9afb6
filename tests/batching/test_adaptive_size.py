"""The batch size adapts to the measured cost per element, and to memory."""

from __future__ import annotations

import random
import threading

import pytest

from runinference.batching.adaptive_size import AdaptiveSize
from runinference.batching.batcher import Batcher
from runinference.batching.policy import BatchPolicy


def fixed(size: int, **fields) -> BatchPolicy:
    return BatchPolicy(min_batch_size=size, max_batch_size=size, **fields)


def with_padded_size(n: int, **fields) -> BatchPolicy:
    return BatchPolicy(max_padded_size=n, length_fn=int, **fields)


def adapt(policy: BatchPolicy, seconds) -> AdaptiveSize:
    size = AdaptiveSize(policy)
    for _ in range(100):
        size.record(size.current, seconds(size.current))
    return size


def test_grows_if_calls_have_a_large_fixed_cost():
    assert adapt(BatchPolicy(), lambda n: 1e-3 + 1e-6 * n).current >= 4096


def test_stays_small_if_the_cost_per_element_is_constant():
    assert adapt(BatchPolicy(), lambda n: 1e-2 * n).current == 1


def test_converges_to_the_size_with_the_lowest_cost_per_element():
    assert (
        adapt(BatchPolicy(), lambda n: n * (1e-3 / min(n, 8) + 1e-4 * max(0, n - 8))).current == 8
    )


def test_explores_again_after_a_few_slow_calls():
    size = AdaptiveSize(BatchPolicy(max_batch_size=32))
    size.record(1, 1.0)
    for noise in (0, 0.4, 0.4, 0.4, 0.8, 0.8, 0.8):
        size.record(size.current, 0.003 + 0.0003 * size.current + noise)
    assert (size.converged, size.current) == (True, 1)
    for _ in range(100):
        size.record(size.current, 0.003 + 0.0003 * size.current)
    assert size.current == 32


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_finds_a_good_size_although_the_durations_of_calls_vary(sigma):
    """On shared machines, the duration of a call varies by a lognormal factor."""

    def cost(n: int) -> float:
        return 5e-3 / n + 5e-5

    ratios = []
    for seed in range(200):
        noise, size = random.Random(seed), AdaptiveSize(BatchPolicy())
        for _ in range(200):
            n = size.current
            size.record(n, n * cost(n) * noise.lognormvariate(0, sigma))
        ratios.append(cost(size.current) / cost(10_000))
    assert sum(ratio <= 2 for ratio in ratios) >= 0.95 * len(ratios)
    assert max(ratios) < 5


def test_slow_outliers_do_not_stop_the_search():
    """Every fourth call waits for something else, 20 times as long."""
    noise, size = random.Random(7), AdaptiveSize(BatchPolicy(max_batch_size=256))
    for _ in range(200):
        n = size.current
        size.record(n, (5e-3 + 5e-6 * n) * (20 if noise.random() < 0.25 else 1))
    assert size.current >= 64


def test_grows_after_one_call_if_the_larger_size_is_much_cheaper():
    size = AdaptiveSize(BatchPolicy(max_batch_size=1024))
    sizes = []
    for _ in range(6):
        sizes.append(size.current)
        size.record(size.current, 5e-3 + 1e-7 * size.current)
    assert sizes == [1, 1, 8, 64, 512, 1024]


@pytest.mark.parametrize("best", [2**n for n in range(10)])
def test_finds_a_size_that_it_skipped(best):
    """Calls of at most this size take equally long."""
    size = adapt(
        BatchPolicy(), lambda n: 5e-3 if n <= best else 5e-3 * n / best * (1 + 0.2 * (n / best))
    )
    assert size.current == best


def test_grows_slowly_while_calls_are_long():
    size = AdaptiveSize(BatchPolicy(max_batch_size=64))
    sizes = []
    for _ in range(6):
        sizes.append(size.current)
        size.record(size.current, 0.1 + 1e-3 * size.current)
    assert sizes == [1, 1, 2, 4, 8, 16]


def test_skips_sizes_while_calls_are_short():
    size = AdaptiveSize(BatchPolicy())
    sizes = []
    for _ in range(50):
        sizes.append(size.current)
        size.record(size.current, 1e-4 + 1e-6 * size.current)
    assert sizes[:5] == [1, 1, 16, 256, 2048]
    assert min(sizes[3:]) >= 256


@pytest.mark.parametrize(("low", "high"), [(3, 100), (1, 7), (5, 5)])
def test_stays_within_the_minimum_and_maximum_size(low, high):
    policy = BatchPolicy(min_batch_size=low, max_batch_size=high)
    size = AdaptiveSize(policy)
    for _ in range(50):
        assert low <= size.current <= high
        size.record(size.current, 1e-3 + 1e-6 * size.current)


def test_does_not_explore_with_a_maximum_padded_size():
    size = AdaptiveSize(with_padded_size(100, max_batch_size=50))
    assert (size.current, size.max_padded_size, size.converged) == (50, 100, True)


def succeed(size: AdaptiveSize, calls: int = 32) -> None:
    for _ in range(calls):
        size.record(size.current, 1e-3)


@pytest.mark.parametrize("policy", [fixed(64), BatchPolicy(min_batch_size=64, max_batch_size=100)])
def test_halves_the_size_when_out_of_memory_and_doubles_it_after_successful_calls(policy):
    size = AdaptiveSize(policy)
    size.record_out_of_memory(64)
    assert size.current == 32
    size.record_out_of_memory(32)
    size.record_out_of_memory(32)
    assert size.current == 16
    succeed(size, 31)
    assert size.current == 16
    succeed(size, 1)
    assert size.current == 32
    succeed(size)
    assert size.current == 64
    succeed(size, 1_000)
    assert size.current <= policy.max_batch_size


def test_small_batches_do_not_raise_the_memory_limit():
    size = AdaptiveSize(fixed(64))
    size.record_out_of_memory(64)
    for _ in range(100):
        size.record(3, 1e-3)
    assert size.current == 32


def test_backs_off_exponentially_if_a_size_keeps_running_out_of_memory():
    size = AdaptiveSize(fixed(64))
    waits = []
    for _ in range(4):
        size.record_out_of_memory(64)
        calls = 0
        while size.current < 64:
            succeed(size, 1)
            calls += 1
        waits.append(calls)
    assert waits == [32, 64, 128, 256]


def test_recovers_from_a_size_of_one():
    size = AdaptiveSize(fixed(8))
    for n in (8, 4, 2, 1):
        size.record_out_of_memory(n)
    assert size.current == 1
    succeed(size, 3 * 32)
    assert size.current == 8


def test_explores_below_the_memory_limit():
    size = AdaptiveSize(BatchPolicy(max_batch_size=1_000))
    for _ in range(10_000):
        if size.current > 100:
            size.record_out_of_memory(size.current)
        size.record(size.current, 1.0)
        assert size.current <= 128
    assert size.current == 64


def test_out_of_memory_halves_the_padded_size_and_not_the_number_of_elements():
    policy = with_padded_size(1_000, max_batch_size=500)
    size = AdaptiveSize(policy)
    size.record_out_of_memory(4, policy.padded_size([200, 200, 100, 100]))
    assert (size.current, size.max_padded_size) == (500, 400)
    batcher = Batcher(policy, size)
    for n in (200, 200, 100, 100, 1, 1):
        batcher.add(n, n)
    assert batcher.flush() == [[200, 200], [100, 100, 1, 1]]
    succeed(size)
    assert size.max_padded_size == 800
    size.record_out_of_memory(4)
    assert size.current == 2


def test_halves_once_if_threads_run_out_of_memory_together():
    size = AdaptiveSize(fixed(64))
    barrier = threading.Barrier(8)

    def fail() -> None:
        barrier.wait()
        size.record_out_of_memory(64)

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert size.current == 32
