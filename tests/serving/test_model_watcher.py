"""A worker looks for new model files now and then, once for all its threads."""

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


def test_files_older_than_the_pipeline_are_of_no_interest(tmp_path):
    file(tmp_path / "old.pt", 400)
    assert watcher(tmp_path, Clock()).poll_latest() is None


def test_the_newest_file_is_named_by_path_and_by_name(tmp_path):
    file(tmp_path / "one.pt", 600)
    newest = file(tmp_path / "two.pt", 700)
    file(tmp_path / "other.txt", 800)
    assert watcher(tmp_path, Clock()).poll_latest() == (newest, "two")


def test_it_looks_once_an_interval_and_gives_the_same_object_meanwhile(tmp_path):
    clock = Clock()
    watching = watcher(tmp_path, clock)
    file(tmp_path / "one.pt", 600)
    first = watching.poll_latest()
    file(tmp_path / "two.pt", 700)
    clock.now += 9
    assert watching.poll_latest() is first
    clock.now += 1
    assert watching.poll_latest().model_name == "two"


def test_it_stops_looking_when_it_was_told_to(tmp_path):
    clock = Clock()
    watching = watcher(tmp_path, clock, until=1_005)
    file(tmp_path / "one.pt", 600)
    watching.poll_latest()
    file(tmp_path / "two.pt", 700)
    clock.now = 1_020
    assert watching.poll_latest().model_name == "one"


def test_a_file_system_that_fails_is_logged_and_tried_again(tmp_path, caplog):
    clock = Clock()
    watching = watcher(tmp_path, clock, pattern="nowhere://models/*")
    assert watching.poll_latest() is None
    assert "Cannot look for 'nowhere://models/*'" in caplog.text
    clock.now += 10
    assert watching.poll_latest() is None
