"""The watcher finds the newest model file of a pattern, at most once per interval."""

from __future__ import annotations

import os

from runinference.serving.model_watcher import ModelWatcher, WatchConfig


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def file(path, stamp):
    path.write_text("model")
    os.utime(path, (stamp, stamp))
    return str(path)


def watcher(tmp_path, clock, **changes):
    fields = {
        "pattern": str(tmp_path / "*.pt"),
        "interval": 10,
        "began": 500,
        "until": 2_000,
        **changes,
    }
    return ModelWatcher(WatchConfig(**fields), clock)


def test_ignores_files_older_than_the_pipeline(tmp_path):
    file(tmp_path / "old.pt", 400)
    assert watcher(tmp_path, Clock()).poll_latest() is None


def test_returns_the_path_and_the_name_of_the_newest_file(tmp_path):
    file(tmp_path / "one.pt", 600)
    newest = file(tmp_path / "two.pt", 700)
    file(tmp_path / "other.txt", 800)
    assert watcher(tmp_path, Clock()).poll_latest() == (newest, "two")


def test_returns_the_same_object_until_the_interval_is_over(tmp_path):
    clock = Clock()
    model_watcher = watcher(tmp_path, clock)
    file(tmp_path / "one.pt", 600)
    first = model_watcher.poll_latest()
    file(tmp_path / "two.pt", 700)
    clock.now += 9
    assert model_watcher.poll_latest() is first
    clock.now += 1
    assert model_watcher.poll_latest().model_name == "two"


def test_stops_polling_after_the_stop_time(tmp_path):
    clock = Clock()
    model_watcher = watcher(tmp_path, clock, until=1_005)
    file(tmp_path / "one.pt", 600)
    model_watcher.poll_latest()
    file(tmp_path / "two.pt", 700)
    clock.now = 1_020
    assert model_watcher.poll_latest().model_name == "one"


def test_logs_file_system_errors_and_tries_again(tmp_path, caplog):
    clock = Clock()
    model_watcher = watcher(tmp_path, clock, pattern="nowhere://models/*")
    assert model_watcher.poll_latest() is None
    assert "Cannot look for 'nowhere://models/*'" in caplog.text
    clock.now += 10
    assert model_watcher.poll_latest() is None
