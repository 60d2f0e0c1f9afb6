"""A result store that is down, full, read-only, damaged or wrong never causes an error or changes a result."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from apache_beam.internal import pickler

import redis_server
from runinference import ModelHandler, PredictionResult
from runinference.errors import OptionError

needs_redis = pytest.mark.skipif(redis_server.find() is None, reason=redis_server.HINT)

CALLS = []


class Doubling(ModelHandler):
    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        CALLS.extend(batch)
        return [PredictionResult(x, 2 * x) for x in batch]


def cached(location, **options):
    handler = Doubling(min_batch_size=100, max_batch_size=100)
    return handler.with_cache(location, **{"version": "1", **options})


def predict(location, elements=(1, 2, 3), **options):
    """Return the elements that the model was called for. The results must be right."""
    CALLS.clear()
    results = cached(location, **options).predict(elements)
    assert results == [PredictionResult(x, 2 * x) for x in elements]
    return list(CALLS)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def redis_url():
    with redis_server.serving() as url:
        yield url


@pytest.fixture(params=["folder", pytest.param("redis", marks=needs_redis)])
def location(request, tmp_path):
    """Return an empty store."""
    if request.param == "folder":
        return str(tmp_path / "cache")
    url = request.getfixturevalue("redis_url")
    connect(url).flushall()
    return url


def connect(url, **options):
    import redis

    return redis.Redis.from_url(url, **options)


def edit_entries(location, edit):
    """Replace each stored entry."""
    if location.startswith("redis"):
        client = connect(location)
        for key in client.keys("*result/*"):
            client.set(key, edit(client.get(key)))
        return
    with sqlite3.connect(Path(location) / "cache.db") as database:
        rows = database.execute("SELECT rowid, value FROM Cache").fetchall()
        for row, value in rows:
            database.execute("UPDATE Cache SET value = ? WHERE rowid = ?", (edit(value), row))
    database.close()


def test_results_are_read_from_the_store(location):
    assert predict(location) == [1, 2, 3]
    assert predict(location, (3, 1, 4)) == [4]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


DAMAGED = {
    "truncated": lambda entry: entry[:-3],
    "empty": lambda entry: b"",
    "foreign": lambda entry: (
        b"something else, as long as an entry of this library would be, and longer" * 2
    ),
    "one bit": lambda entry: entry[:-1] + bytes([entry[-1] ^ 1]),
    "time": lambda entry: entry[:8] + b"\x01" + entry[9:],
    "other version": lambda entry: entry[:4] + b"\x00\x63" + entry[6:],
    "pickle": lambda entry: pickle.dumps(Malicious()),
}


@pytest.mark.parametrize("edit", DAMAGED.values(), ids=DAMAGED)
def test_damaged_entries_are_replaced(edit, location, caplog):
    caplog.set_level("WARNING")
    predict(location)
    edit_entries(location, edit)
    assert predict(location) == [1, 2, 3]
    assert len(warnings_of(caplog)) == 1
    assert "is ignored" in warnings_of(caplog)[0]
    assert predict(location) == []


def test_the_entry_of_another_element_is_replaced(location):
    predict(location)
    entries = []
    edit_entries(location, lambda entry: entries.append(entry) or entries[0])
    assert sorted(predict(location)) in ([1, 2], [1, 3], [2, 3])


def test_code_in_a_file_of_the_folder_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict("cache")
    edit_entries("cache", lambda entry: pickle.dumps(Malicious()))
    with sqlite3.connect("cache/cache.db") as database:
        database.execute("UPDATE Cache SET mode = 4")  # a pickle of diskcache
    database.close()
    assert predict("cache") == [1, 2, 3]
    assert not Path("executed").exists()


@pytest.mark.parametrize("jump", [-1e6, 1e6], ids=["back", "forward"])
def test_results_expire_by_age_even_if_the_clock_jumps(jump, location, monkeypatch):
    predict(location, max_age_secs=1000)
    assert predict(location, max_age_secs=1000) == []
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    assert predict(location, max_age_secs=1000) == [1, 2, 3]
    assert predict(location, max_age_secs=1000) == []
    assert predict(location) == []


def test_the_folder_has_a_maximum_size(tmp_path):
    folder = tmp_path / "cache"
    texts = [f"{i}" * 20_000 for i in range(10, 60)]
    for text in texts:
        predict(folder, [text], max_bytes=1_000_000)
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert n_bytes < 2_500_000  # including the journal of SQLite
    assert predict(folder, texts[-1:], max_bytes=1_000_000) == []
    assert predict(folder, texts[:1], max_bytes=1_000_000) == texts[:1]
    predict(folder, ["long" * 1_000_000], max_bytes=1_000_000)  # isn't stored
    assert predict(folder, texts[-1:], max_bytes=1_000_000) == []


def make_file(path):
    path.write_text("a file")
    return path


def make_broken_folder(path):
    path.mkdir()
    (path / "cache.db").write_bytes(b"This is not a database." * 100)
    return path


def use_refused_port(path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"redis://127.0.0.1:{free.getsockname()[1]}"


UNUSABLE = {
    "a file": make_file,
    "no database": make_broken_folder,
    "no folder": lambda path: "/proc/none/cache",
    "redis down": use_refused_port,
    "no such host": lambda path: "redis://host.invalid:6379",
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_a_store_that_is_down_logs_only_one_warning(make, tmp_path, caplog):
    caplog.set_level("WARNING")
    handler = cached(make(tmp_path / "store"))
    CALLS.clear()
    for _ in range(3):
        assert handler.predict([1, 2]) == [PredictionResult(1, 2), PredictionResult(2, 4)]
    assert CALLS == [1, 2] * 3
    [warning] = warnings_of(caplog)
    assert "the model is called without it" in warning


def test_a_folder_that_is_deleted_is_created_again(tmp_path, caplog, monkeypatch):
    now, jump = time.monotonic, 0
    monkeypatch.setattr(time, "monotonic", lambda: now() + jump)
    folder = tmp_path / "cache"
    handler = cached(folder)
    for delete in (lambda: shutil.rmtree(folder), lambda: folder.rename(tmp_path / "other")):
        handler.predict([1])
        delete()
        CALLS.clear()
        handler.predict([1])
        jump += 100  # after the pause
        handler.predict([1, 2])
        handler.predict([1, 2])
        assert CALLS == [1, 1, 2]
        assert predict(folder, [1, 2]) == []
    assert len(warnings_of(caplog)) == 1


@needs_redis
def test_a_store_is_used_again_after_a_restart(caplog, monkeypatch):
    caplog.set_level("WARNING")
    now = time.monotonic
    handler = None
    with redis_server.serving() as url:
        handler = cached(url)
        handler.predict([1])
    CALLS.clear()
    handler.predict([1, 2])
    assert CALLS == [1, 2]
    with redis_server.serving(port=int(url.rpartition(":")[2].partition("/")[0])):
        monkeypatch.setattr(time, "monotonic", lambda: now() + 100)  # after the pause
        handler.predict([1, 2])
        handler.predict([1, 2])
        assert CALLS == [1, 2, 1, 2]
    assert len(warnings_of(caplog)) == 1


@needs_redis
def test_a_store_that_is_full_or_read_only_still_returns_stored_results(redis_url, caplog):
    caplog.set_level("WARNING")
    client = connect(redis_url)
    client.flushall()
    predict(redis_url, [1])
    for name, value, normal in (("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")):
        client.config_set(name, value)
        try:
            assert predict(redis_url, [1, 5]) == [5]
        finally:
            client.config_set(name, normal)
    assert len(warnings_of(caplog)) == 2  # one for each handler


def test_a_server_that_hangs_delays_calls_by_one_timeout(caplog, monkeypatch):
    caplog.set_level("WARNING")
    import redis

    from_url = redis.Redis.from_url
    limits = []

    def connect_quickly(url, **options):
        limits.append(options["socket_timeout"])
        return from_url(url, **{**options, "socket_timeout": 0.05})

    monkeypatch.setattr(redis.Redis, "from_url", connect_quickly)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        handler = cached(f"redis://127.0.0.1:{hanging.getsockname()[1]}")
        CALLS.clear()
        start = time.monotonic()
        for _ in range(5):
            handler.predict([1])
        assert time.monotonic() - start < 1
    assert CALLS == [1] * 5
    assert len(warnings_of(caplog)) == 1
    assert 0 < limits[0] < 10


@needs_redis
def test_the_password_is_read_on_the_worker_and_is_not_in_logs_or_pickles(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with redis_server.serving("--requirepass", "sesame-123") as url:
        handler = cached(url, password_env="CACHE_PASSWORD")
        monkeypatch.setenv("CACHE_PASSWORD", "sesame-123")
        handler.predict([1])
        CALLS.clear()
        assert cached(url, password_env="CACHE_PASSWORD").predict([1]) == [PredictionResult(1, 2)]
        assert CALLS == []
        monkeypatch.setenv("CACHE_PASSWORD", "wrong-password")
        assert predict(url, password_env="CACHE_PASSWORD") == [1, 2, 3]
    assert b"sesame" not in pickler.dumps(handler) + repr(vars(handler)).encode()
    assert "sesame" not in caplog.text
    assert "wrong-password" not in caplog.text


def test_a_folder_is_for_this_user_only(tmp_path):
    predict(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o77 == 0


def test_the_default_folder_is_in_the_cache_directory_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    predict(None)
    assert (tmp_path / "runinference" / "results" / "cache.db").exists()


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "diskcache", None)
    with pytest.raises(ImportError, match=r'pip install "runinference\[cache\]"'):
        cached(tmp_path)


def test_the_claim_of_a_worker_without_heartbeats_expires(location):
    entered, repeated = threading.Event(), threading.Event()

    class Stuck(Doubling):
        def run_inference(self, batch, model, inference_args=None):
            if entered.is_set():
                repeated.set()
            entered.set()
            repeated.wait(20)
            return super().run_inference(batch, model)

    # The first heartbeat of the first worker comes too late for the second one.
    stuck = Stuck().with_cache(location, version="1", claim_secs=1000)
    alive = Stuck().with_cache(location, version="1", claim_secs=0.1)
    CALLS.clear()
    thread = threading.Thread(target=stuck.predict, args=([1],))
    thread.start()
    entered.wait(20)
    assert alive.predict([1]) == [PredictionResult(1, 2)]
    thread.join(20)
    assert CALLS == [1, 1]


def test_the_claim_of_a_worker_that_is_alive_does_not_expire(location):
    entered, waited = threading.Event(), threading.Event()

    class Slow(Doubling):
        def run_inference(self, batch, model, inference_args=None):
            entered.set()
            waited.wait(20)
            return super().run_inference(batch, model)

    handlers = [Slow().with_cache(location, version="1", claim_secs=0.3) for _ in range(2)]
    thread = threading.Thread(target=handlers[0].predict, args=([1],))
    CALLS.clear()
    thread.start()
    entered.wait(20)
    threading.Timer(0.6, waited.set).start()
    assert handlers[1].predict([1]) == [PredictionResult(1, 2)]
    thread.join(20)
    assert CALLS == [1]


def test_the_claim_of_a_call_that_takes_hours_does_not_expire(tmp_path, monkeypatch):
    now, entered, repeated = time.time, threading.Event(), threading.Event()

    class Slow(Doubling):
        def run_inference(self, batch, model, inference_args=None):
            if entered.is_set():
                repeated.set()
            entered.set()
            repeated.wait(0.3)
            return super().run_inference(batch, model)

    handlers = [Slow().with_cache(tmp_path, version="1") for _ in range(2)]
    CALLS.clear()
    thread = threading.Thread(target=handlers[0].predict, args=([1],))
    thread.start()
    entered.wait(20)
    monkeypatch.setattr(time, "time", lambda: now() + 30 * 3_600)
    assert handlers[1].predict([1]) == [PredictionResult(1, 2)]
    thread.join(20)
    assert CALLS == [1]


def test_url_errors_do_not_repeat_the_password():
    with pytest.raises(OptionError) as error:
        cached("redis://user:sesame@host:6379")
    assert "sesame" not in str(error.value)
