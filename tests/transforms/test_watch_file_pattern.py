"""WatchFilePattern emits new files of a pattern."""

from __future__ import annotations

from apache_beam.utils.timestamp import Timestamp

from runinference.transforms.watch_file_pattern import KeepNewest


def test_emits_the_newest_file_once_and_no_file_older_than_the_pipeline():
    class File:
        def __init__(self, path, stamp):
            self.path, self.last_updated_in_seconds = path, stamp

    class State:
        value = None

        def read(self):
            return self.value

        def write(self, value):
            self.value = value

    do_fn, state = KeepNewest(Timestamp(100)), State()

    def process(path, stamp):
        return list(do_fn.process(("", File(path, stamp)), state))

    assert process("/m/before.pt", 99) == []
    assert process("/m/one.pt", 101) == [("/m/one.pt", "one")]
    assert process("/m/one.pt", 101) == []
    assert process("/m/late.pt", 100.5) == []
    assert process("/m/two.pt", 102) == [("/m/two.pt", "two")]
