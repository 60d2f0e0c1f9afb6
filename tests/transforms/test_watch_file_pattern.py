"""WatchFilePattern emits new files of a pattern."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.utils.timestamp import Timestamp

from runinference import ModelHandler, RunInference, WatchFilePattern
from runinference.errors import OptionError
from runinference.serving.model_watcher import WatchConfig
from runinference.transforms.side_inputs import AsLatest
from runinference.transforms.watch_file_pattern import EmitNewFiles
from serving.test_model_watcher import file


class State:
    value = None

    def read(self):
        return self.value

    def write(self, value):
        self.value = value


class Polls:
    """Polls a folder like the workers of a pipeline, which keep what they know in state."""

    def __init__(self, tmp_path):
        self._do_fn = EmitNewFiles(WatchConfig.create(str(tmp_path / "*.pt"), 1))
        self._state = State()
        self._n = 0

    def poll(self):
        self._n += 1
        return list(self._do_fn.process(("", None), Timestamp(self._n), self._state))

    def names(self):
        return [stamped.value.model_name for stamped in self.poll()]


def test_emits_each_file_that_appears_once_and_no_file_that_existed_before(tmp_path):
    file(tmp_path / "before.pt", 99)
    polls = Polls(tmp_path)
    assert polls.names() == []
    file(tmp_path / "one.pt", 101)
    assert polls.names() == ["one"]
    assert polls.names() == []
    file(tmp_path / "late.pt", 50)
    assert polls.names() == ["late"]
    file(tmp_path / "before.pt", 102)
    assert polls.names() == ["before"]


def test_emits_all_files_that_appear_between_two_polls_and_the_newest_last(tmp_path):
    polls = Polls(tmp_path)
    for name, stamp in (("c", 3), ("b", 5), ("a", 5), ("d", 4)):
        file(tmp_path / f"{name}.pt", stamp)
    emitted = polls.poll()
    assert [stamped.value.model_name for stamped in emitted] == ["c", "d", "a", "b"]
    stamps = [(stamped.timestamp.micros, stamped.value) for stamped in emitted]
    assert AsLatest._from_runtime_iterable(stamps, {}).model_name == "b"


def test_a_file_that_disappears_from_one_listing_is_not_emitted_again(tmp_path):
    polls = Polls(tmp_path)
    file(tmp_path / "one.pt", 3)
    file(tmp_path / "two.pt", 4)
    assert polls.names() == ["one", "two"]
    (tmp_path / "one.pt").rename(tmp_path / "away")
    assert polls.names() == []
    (tmp_path / "away").rename(tmp_path / "one.pt")
    assert polls.names() == []


class Same(ModelHandler):
    def load_model(self):
        return object()

    def run_inference(self, batch, model, inference_args=None):
        return batch


def watch_in_run_inference(pattern, **options):
    return RunInference(Same(), watch_model_pattern=pattern, **options)


@pytest.mark.parametrize("watch", [WatchFilePattern, watch_in_run_inference])
@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ("/m/*", {"interval": 0}, "interval must be greater than 0 seconds, but is 0"),
        ("/m/*", {"interval": -5}, "interval must be greater than 0"),
        ("/m/*", {"interval": float("nan")}, "interval must be a finite number"),
        ("/m/*", {"stop_timestamp": 1.0}, "would never be polled"),
        ("nowhere://m/*", {}, "'nowhere://m/\\*' has no known file system"),
    ],
)
def test_options_that_cannot_work_raise_at_construction(watch, pattern, options, message):
    with pytest.raises(OptionError, match=message):
        watch(pattern, **options)


def test_a_pattern_without_files_emits_nothing(tmp_path):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        watch = WatchFilePattern(
            str(tmp_path / "none" / "*"), interval=0.1, stop_timestamp=Timestamp.now() + 0.2
        )
        _ = pipeline | watch | beam.Map(pytest.fail)
