"""The watcher finds the newest model file of a pattern, at most once per interval."""

from __future__ import annotations

import os
import pickle

import pytest

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
    caplog.set_level("WARNING")
    clock = Clock()
    model_watcher = watcher(tmp_path, clock, pattern="nowhere://models/*")
    assert model_watcher.poll_latest() is None
    assert "Cannot look for 'nowhere://models/*'" in caplog.text
    clock.now += 10
    assert model_watcher.poll_latest() is None


@pytest.mark.parametrize("stamp", [400, 600, 700])
def test_a_file_that_appears_later_is_used_whenever_it_was_last_changed(tmp_path, stamp):
    """Moving a file keeps the time of its last change."""
    clock = Clock()
    model_watcher = watcher(tmp_path, clock)
    file(tmp_path / "first.pt", 600)
    assert model_watcher.poll_latest().model_name == "first"
    file(tmp_path / "away", stamp)
    (tmp_path / "away").rename(tmp_path / "a.pt")
    clock.now += 10
    assert model_watcher.poll_latest().model_name == "a"


def test_a_file_that_existed_when_the_pipeline_was_built_is_used_after_it_changed(tmp_path):
    clock = Clock()
    file(tmp_path / "old.pt", 2e9)
    model_watcher = ModelWatcher(WatchConfig.create(str(tmp_path / "*.pt"), 10), clock)
    assert model_watcher.poll_latest() is None
    file(tmp_path / "old.pt", 1e9)
    clock.now += 10
    assert model_watcher.poll_latest().model_name == "old"


def test_all_workers_agree_on_which_files_are_new(tmp_path):
    """A worker that starts later must not take a file for an old one that others use."""
    watch = WatchConfig.create(str(tmp_path / "*.pt"), 10)
    file(tmp_path / "moved.pt", 400)
    early = ModelWatcher(watch, Clock()).poll_latest()
    late = ModelWatcher(pickle.loads(pickle.dumps(watch)), Clock()).poll_latest()
    assert early == late == (str(tmp_path / "moved.pt"), "moved")
