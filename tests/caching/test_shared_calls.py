"""One worker calls the model for a missing result, and the others wait for it."""

from __future__ import annotations

import pytest

from runinference.caching.guarded_store import GuardedStore
from runinference.caching.shared_calls import SharedCalls


class MemoryStore:
    """A store in a dictionary. ``before_claim`` is called once, before the first claim."""

    def __init__(self, before_claim=lambda store: None):
        self.results, self.owners, self.before_claim = {}, {}, before_claim

    def read(self, names):
        return {name: self.results[name] for name in names if name in self.results}

    def write(self, entries):
        self.results.update(entries)

    def claim(self, names, owner):
        before, self.before_claim = self.before_claim, lambda store: None
        before(self)
        free = {name for name in names if name not in self.owners}
        self.owners.update(dict.fromkeys(free, owner))
        return free

    def read_claims(self, names):
        return {name: self.owners[name] for name in names if name in self.owners}

    def release(self, claims):
        for name, owner in claims.items():
            if self.owners.get(name) == owner:
                del self.owners[name]

    def write_heartbeat(self, owner, heartbeat):
        """Do nothing."""

    def read_heartbeats(self, owners):
        return dict.fromkeys(owners, b"")


def resolve(store, names, claim_secs=10):
    """Return the names that were found, and those that the model was called for."""
    called = []

    def call(names, finish):
        called.extend(names)
        finish({name: name.encode() for name in names})

    calls = SharedCalls(GuardedStore(lambda: store, "memory"), claim_secs)
    found = calls.resolve(names, store.read, call, lambda: None)
    return sorted(found), called


def test_a_result_that_is_stored_just_before_the_claim_is_read():
    store = MemoryStore(lambda store: store.write({"a": b"a"}))
    assert resolve(store, ["a", "b"]) == (["a"], ["b"])
    assert not store.owners


def test_a_claim_that_ends_without_a_result_is_taken_over():
    store = MemoryStore()
    store.owners["a"] = b"other"
    read_claims = store.read_claims

    def fail(names):
        found = read_claims(names)
        store.owners.pop("a", None)  # the call of the other worker has failed
        return found

    store.read_claims = fail
    assert resolve(store, ["a", "b"]) == ([], ["b", "a"])


def test_the_claims_of_a_call_that_fails_end():
    store = MemoryStore()

    def call(names, finish):
        finish({"a": b"a"})
        raise ValueError("failed")

    calls = SharedCalls(GuardedStore(lambda: store, "memory"), 10)
    with pytest.raises(ValueError, match="failed"):
        calls.resolve(["a", "b"], store.read, call, lambda: None)
    assert (store.results, store.owners) == ({"a": b"a"}, {})


def test_the_claim_of_a_worker_that_died_is_taken_over():
    store = MemoryStore()
    store.owners["a"] = b"dead"
    assert resolve(store, ["a"], claim_secs=0.01) == ([], ["a"])


def test_claims_that_can_be_neither_read_nor_replaced_do_not_stop_the_worker():
    class Damaged(MemoryStore):
        def claim(self, names, owner):
            return {name for name in names if name != "damaged"}

        def read_claims(self, names):
            return {}

    assert resolve(Damaged(), ["a", "damaged"]) == ([], ["a", "damaged"])
