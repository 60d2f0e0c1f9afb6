"""The cache loads each model once, and evicts the least recently used one that is not in use."""

from __future__ import annotations

import random
import threading
import weakref

import pytest

from runinference.caching.model_cache import CacheLimits, ModelCache
from runinference.errors import OptionError


class Model:
    """A model that logs when it is closed."""

    def __init__(self, log: list[str] | None = None, name: str = "", n_bytes: int = 1) -> None:
        self.log, self.name, self.n_bytes = log, name, n_bytes
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        if self.log is not None:
            self.log.append(self.name)


class LoggedCache:
    """A cache that records which models are loaded and closed."""

    def __init__(self, **limits) -> None:
        self.cache = ModelCache(CacheLimits(**limits))
        self.loads: list[str] = []
        self.closed: list[str] = []
        self.lock = threading.Lock()

    def acquire(self, name: str, n_bytes: int = 1, **options):
        def load() -> Model:
            with self.lock:
                self.loads.append(name)
            return Model(self.closed, name, n_bytes)

        return self.cache.acquire(name, load, **options)


def test_loads_a_model_once():
    logged = LoggedCache()
    for _ in range(3):
        with logged.acquire("a") as model:
            assert model.name == "a"
    assert logged.loads == ["a"]


def test_evicts_the_least_recently_used_model():
    logged = LoggedCache(max_models=2)
    for name in ("a", "b", "a", "c"):
        with logged.acquire(name):
            pass
    assert logged.closed == ["b"]
    assert logged.cache.names() == ["a", "c"]
    assert logged.cache.drain_evictions() == 1


def test_never_evicts_a_model_in_use():
    logged = LoggedCache(max_models=1)
    with logged.acquire("a") as a, logged.acquire("b", exceed_limits=True) as b:
        assert not a.closed
        assert not b.closed
    assert logged.closed == ["b"]  # released first, and one model fits


def test_a_refresh_does_not_wait_for_a_thread_that_waits_for_the_old_model():
    """One thread waits for room for a model, and another one needs it to release the old model."""
    evicted = threading.Event()

    class Log(list):
        def append(self, name):
            super().append(name)
            if name == "small":
                evicted.set()

    logged = LoggedCache(max_bytes=3, wait_secs=60)
    logged.closed = Log()

    def use(exceeds):
        logged.acquire("new", 2, exceed_limits=exceeds).release()

    with logged.acquire("new", 2):
        pass
    with logged.acquire("old", 2):
        with logged.acquire("small", 1):
            pass
        threads = [threading.Thread(target=use, args=[exceeds]) for exceeds in (False, True)]
        threads[0].start()
        evicted.wait(10)  # now the first thread waits for the end of this block, or will
        threads[1].start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
    assert logged.loads == ["new", "old", "small", "new"]


def test_waits_for_a_release_when_the_cache_is_full():
    logged = LoggedCache(max_models=1)
    started, acquired = threading.Event(), threading.Event()

    def use():
        started.set()
        with logged.acquire("b"):
            acquired.set()

    with logged.acquire("a"):
        thread = threading.Thread(target=use)
        thread.start()
        started.wait(10)
        assert not acquired.wait(0.05)
    thread.join(10)
    assert acquired.is_set()
    assert logged.closed == ["a"]


def test_exceeds_the_limits_if_no_model_is_released_in_time():
    logged = LoggedCache(max_models=1, wait_secs=0.01)
    with logged.acquire("a"), logged.acquire("b"):
        assert logged.loads == ["a", "b"]


def test_limits_the_bytes_of_all_models():
    logged = LoggedCache(max_bytes=10)
    for name, n_bytes in (("a", 4), ("b", 4), ("c", 4), ("b", 4)):
        with logged.acquire(name, n_bytes):
            pass
    assert logged.closed == ["a"]
    with logged.acquire("huge", 100) as model:
        assert not model.closed  # a single model always fits
    assert logged.closed == ["a", "c", "b"]


def test_evicts_before_it_loads_a_model_of_known_size():
    logged = LoggedCache(max_bytes=10)
    with logged.acquire("large", 9):
        pass
    with logged.acquire("small", 2):
        pass
    assert logged.closed == ["large"]
    with logged.acquire("large", 9) as model:
        assert logged.closed == ["large", "small"]
        assert not model.closed


def test_a_failed_load_leaves_no_entry():
    logged = LoggedCache(max_models=1)

    def fail():
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"), logged.cache.acquire("a", fail):
        pass
    assert logged.cache.names() == []
    with logged.acquire("a"):
        pass
    with logged.acquire("b"):
        pass
    assert logged.closed == ["a"]


def test_closes_an_expired_model_when_it_is_released():
    logged = LoggedCache()
    with logged.acquire("old") as model:
        logged.cache.expire("old")
        assert not model.closed
        watch = weakref.ref(model)
        del model
    assert logged.closed == ["old"]
    assert watch() is None
    assert logged.cache.drain_evictions() == 0


def test_keeps_an_expired_model_that_is_acquired_again():
    logged = LoggedCache()
    with logged.acquire("a"):
        logged.cache.expire("a")
        with logged.acquire("a"):
            pass
    assert logged.closed == []
    assert logged.loads == ["a"]


def test_loads_a_new_model_in_place_of_an_invalid_one():
    logged = LoggedCache()
    with logged.acquire("a") as stuck:
        logged.cache.invalidate("a", stuck)
        with logged.acquire("a") as fresh:
            assert fresh is not stuck
            logged.cache.invalidate("a", stuck)  # by another thread whose call hung
        assert not stuck.closed
    assert stuck.closed
    assert not fresh.closed
    assert logged.cache.names() == ["a"]


def test_closes_a_model_once_if_it_is_released_while_it_is_invalidated():
    logged = LoggedCache()
    user = logged.acquire("a")
    stuck = user.__enter__()
    lock = logged.cache._changed

    class ReleaseWhenUnlocked:
        notify_all = lock.notify_all

        def __enter__(self):
            lock.acquire()

        def __exit__(self, *error):
            lock.release()
            logged.cache._changed = lock
            user.__exit__(None, None, None)

    logged.cache._changed = ReleaseWhenUnlocked()
    logged.cache.invalidate("a", stuck)
    assert logged.closed == ["a"]


def test_threads_wait_only_for_the_load_of_the_same_model():
    logged = LoggedCache()
    loading, resume = threading.Event(), threading.Event()
    loads = []

    def slowly():
        loads.append(1)
        loading.set()
        resume.wait(10)
        return Model()

    def use():
        with logged.cache.acquire("slow", slowly):
            pass

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    loading.wait(10)
    with logged.acquire("other"):
        pass
    resume.set()
    for thread in threads:
        thread.join(10)
    assert loads == [1]


def test_an_evicted_model_counts_until_it_is_closed():
    """Another thread used to load the next model before the evicted one was closed."""
    logged = LoggedCache(max_models=2)
    closing, resume = threading.Event(), threading.Event()

    class Slow(Model):
        def close(self):
            closing.set()
            resume.wait(10)
            super().close()

    def use(name):
        with logged.acquire(name):
            pass

    with logged.cache.acquire("slow", Slow):
        pass
    use("a")
    threads = [threading.Thread(target=use, args=(name,)) for name in "bc"]
    threads[0].start()  # evicts the slow one
    assert closing.wait(10)
    threads[1].start()
    threads[1].join(0.05)
    assert logged.loads == ["a"]
    resume.set()
    for thread in threads:
        thread.join(10)
    assert sorted(logged.loads) == ["a", "b", "c"]
    assert logged.closed == ["a"]


def test_loads_a_model_of_unknown_size_alone_if_bytes_are_limited():
    logged = LoggedCache(max_bytes=10)
    loading, resume = threading.Event(), threading.Event()

    def slowly():
        loading.set()
        resume.wait(10)
        return Model(logged.closed, "first", 8)

    def first():
        with logged.cache.acquire("first", slowly):
            pass

    def second():
        with logged.acquire("second", 8):
            pass

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    assert loading.wait(10)
    threads[1].start()
    threads[1].join(0.05)
    assert logged.loads == []
    resume.set()
    for thread in threads:
        thread.join(10)
    assert logged.loads == ["second"]
    assert logged.closed == ["first"]


@pytest.mark.parametrize("seed", range(5))
def test_concurrent_loads_evictions_expirations_and_invalidations(seed):
    logged = LoggedCache(max_models=2)
    names = "abcd"
    n_loaded = []

    def work(worker: int) -> None:
        dice = random.Random(seed * 100 + worker)
        for _ in range(200):
            name = dice.choice(names)
            with logged.acquire(name) as model:
                assert model.name == name
                assert not model.closed
                n_loaded.append(len(logged.cache.names()))
                if dice.random() < 0.1:
                    logged.cache.expire(dice.choice(names))
                if dice.random() < 0.05:
                    logged.cache.invalidate(name, model)
                assert not model.closed

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert max(n_loaded) <= 2
    assert len(logged.loads) - len(logged.closed) == len(logged.cache.names())


@pytest.mark.parametrize("limits", [{"max_models": 0}, {"max_bytes": -1}])
def test_limits_below_one_raise(limits):
    with pytest.raises(OptionError, match="must be at least 1"):
        CacheLimits(**limits)
