"""Models are loaded once, lent while they are used, and put away when there is no room."""

from __future__ import annotations

import random
import threading
import weakref

import pytest

from runinference.caching.model_cache import CacheLimits, ModelCache
from runinference.errors import OptionError


class Model:
    """Counts how many of its kind live, and how many ever did."""

    def __init__(self, log: list[str] | None = None, name: str = "", n_bytes: int = 1) -> None:
        self.log, self.name, self.n_bytes = log, name, n_bytes
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        if self.log is not None:
            self.log.append(self.name)


class Library:
    """A cache with models that tell when they are loaded and closed."""

    def __init__(self, **room) -> None:
        self.cache = ModelCache(CacheLimits(**room))
        self.loads: list[str] = []
        self.closed: list[str] = []
        self.lock = threading.Lock()

    def lease(self, name: str, n_bytes: int = 1, **options):
        def load() -> Model:
            with self.lock:
                self.loads.append(name)
            return Model(self.closed, name, n_bytes)

        return self.cache.lease(name, load, **options)


def test_a_model_is_loaded_once_and_lent_again():
    library = Library()
    for _ in range(3):
        with library.lease("a") as model:
            assert model.name == "a"
    assert library.loads == ["a"]


def test_the_least_recently_used_makes_room():
    library = Library(models=2)
    for name in ("a", "b", "a", "c"):
        with library.lease(name):
            pass
    assert library.closed == ["b"]
    assert library.cache.names() == ["a", "c"]
    assert library.cache.drain_evictions() == 1


def test_a_model_that_is_lent_is_never_put_away():
    library = Library(models=1)
    with library.lease("a") as a, library.lease("b", beside=True) as b:
        assert not a.closed
        assert not b.closed
    assert library.closed == ["b"]  # the inner lease ended first, and there is room for one


def test_who_finds_no_room_waits_for_a_lease_to_end():
    library = Library(models=1)
    asked, got = threading.Event(), threading.Event()

    def ask():
        asked.set()
        with library.lease("b"):
            got.set()

    with library.lease("a"):
        thread = threading.Thread(target=ask)
        thread.start()
        asked.wait(10)
        assert not got.wait(0.05)
    thread.join(10)
    assert got.is_set()
    assert library.closed == ["a"]


def test_waiting_ends_where_nothing_is_given_back():
    library = Library(models=1, wait_secs=0.01)
    with library.lease("a"), library.lease("b"):
        assert library.loads == ["a", "b"]


def test_room_may_be_given_in_bytes():
    library = Library(n_bytes=10)
    for name, n_bytes in (("a", 4), ("b", 4), ("c", 4), ("b", 4)):
        with library.lease(name, n_bytes):
            pass
    assert library.closed == ["a"]
    with library.lease("huge", 100) as model:
        assert not model.closed  # one alone always fits
    assert library.closed == ["a", "c", "b"]


def test_a_size_that_is_known_makes_room_before_the_model_comes():
    library = Library(n_bytes=10)
    with library.lease("large", 9):
        pass
    with library.lease("small", 2):
        pass
    assert library.closed == ["large"]
    with library.lease("large", 9) as model:
        assert library.closed == ["large", "small"]
        assert not model.closed


def test_a_load_that_fails_leaves_nothing_behind():
    library = Library(models=1)

    def fail():
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"), library.cache.lease("a", fail):
        pass
    assert library.cache.names() == []
    with library.lease("a"):
        pass
    with library.lease("b"):
        pass
    assert library.closed == ["a"]


def test_a_retired_model_is_freed_after_its_last_lease():
    library = Library()
    with library.lease("old") as model:
        library.cache.expire("old")
        assert not model.closed
        watch = weakref.ref(model)
        del model
    assert library.closed == ["old"]
    assert watch() is None
    assert library.cache.drain_evictions() == 0


def test_a_retired_model_that_is_asked_for_again_stays():
    library = Library()
    with library.lease("a"):
        library.cache.expire("a")
        with library.lease("a"):
            pass
    assert library.closed == []
    assert library.loads == ["a"]


def test_a_stuck_model_is_forgotten_and_a_fresh_one_loaded():
    library = Library()
    with library.lease("a") as stuck:
        library.cache.invalidate("a", stuck)
        with library.lease("a") as fresh:
            assert fresh is not stuck
            library.cache.invalidate("a", stuck)  # by another thread that was stuck in it
        assert not stuck.closed
    assert stuck.closed
    assert not fresh.closed
    assert library.cache.names() == ["a"]


def test_a_model_whose_last_lease_ends_while_it_is_given_up_is_closed_once():
    library = Library()
    lease = library.lease("a")
    stuck = lease.__enter__()
    lock = library.cache._changed

    class LeaseEndsWhenLockIsFree:
        notify_all = lock.notify_all

        def __enter__(self):
            lock.acquire()

        def __exit__(self, *error):
            lock.release()
            library.cache._changed = lock
            lease.__exit__(None, None, None)

    library.cache._changed = LeaseEndsWhenLockIsFree()
    library.cache.invalidate("a", stuck)
    assert library.closed == ["a"]


def test_one_load_at_a_time_for_a_model_and_others_need_not_wait():
    library = Library()
    loading, go_on = threading.Event(), threading.Event()
    loads = []

    def slowly():
        loads.append(1)
        loading.set()
        go_on.wait(10)
        return Model()

    def ask():
        with library.cache.lease("slow", slowly):
            pass

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    loading.wait(10)
    with library.lease("other"):
        pass
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert loads == [1]


def test_a_model_takes_room_until_it_is_closed():
    """It had been forgotten before it was closed, and another thread loaded the next one beside it."""
    library = Library(models=2)
    closing, go_on = threading.Event(), threading.Event()

    class Slow(Model):
        def close(self):
            closing.set()
            go_on.wait(10)
            super().close()

    def ask(name):
        with library.lease(name):
            pass

    with library.cache.lease("slow", Slow):
        pass
    ask("a")
    threads = [threading.Thread(target=ask, args=(name,)) for name in "bc"]
    threads[0].start()  # puts the slow one away
    assert closing.wait(10)
    threads[1].start()
    threads[1].join(0.05)
    assert library.loads == ["a"]
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert sorted(library.loads) == ["a", "b", "c"]
    assert library.closed == ["a"]


def test_a_model_of_unknown_size_is_loaded_alone_where_bytes_are_counted():
    library = Library(n_bytes=10)
    loading, go_on = threading.Event(), threading.Event()

    def slowly():
        loading.set()
        go_on.wait(10)
        return Model(library.closed, "first", 8)

    def first():
        with library.cache.lease("first", slowly):
            pass

    def second():
        with library.lease("second", 8):
            pass

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    assert loading.wait(10)
    threads[1].start()
    threads[1].join(0.05)
    assert library.loads == []
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert library.loads == ["second"]
    assert library.closed == ["first"]


@pytest.mark.parametrize("seed", range(5))
def test_threads_race_through_load_eviction_retirement_and_giving_up(seed):
    library = Library(models=2)
    names = "abcd"
    most = []

    def work(worker: int) -> None:
        dice = random.Random(seed * 100 + worker)
        for _ in range(200):
            name = dice.choice(names)
            with library.lease(name) as model:
                assert model.name == name
                assert not model.closed
                most.append(len(library.cache.names()))
                if dice.random() < 0.1:
                    library.cache.expire(dice.choice(names))
                if dice.random() < 0.05:
                    library.cache.invalidate(name, model)
                assert not model.closed

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert max(most) <= 2
    assert len(library.loads) - len(library.closed) == len(library.cache.names())


@pytest.mark.parametrize("room", [{"models": 0}, {"n_bytes": -1}])
def test_room_for_nothing_is_refused(room):
    with pytest.raises(OptionError, match="must be at least 1"):
        CacheLimits(**room)
