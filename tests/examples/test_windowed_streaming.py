"""Tests of examples/windowed_streaming.py."""

import csv
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from runinference import samples
from runinference.errors import ModelNotFoundError


def read_windows(folder):
    rows = [row for file in sorted(Path(folder).glob("*.csv")) for row in csv.reader(file.open())]
    return [(start, int(count), float(mean)) for start, count, mean in sorted(rows)]


def test_writes_one_line_per_minute_of_event_time(run_example):
    printed = run_example("windowed_streaming", "--rate", 400)
    windows = read_windows(re.search(r"certainty: (\S+)/\*\.csv", printed)[1])
    starts, counts, means = zip(*windows, strict=True)
    assert starts == tuple(f"2026-11-02T08:{minute:02}:00Z" for minute in range(14))
    assert counts == (60,) * 13 + (797 - 13 * 60,)

    images, _ = samples.held_out_digits()
    model = pickle.loads(Path(samples.digits_classifier()).read_bytes())
    certainty = model.predict_proba(images).max(1)
    for minute in range(6):  # before noise is added
        assert means[minute] == pytest.approx(certainty[60 * minute :][:60].mean(), abs=1e-3)
    assert max(means[-3:]) < min(means[:6])


def test_accepts_a_log_an_output_folder_a_model_and_a_window_size(load_example, tmp_path):
    images, _ = samples.held_out_digits()
    seconds = [5, 11, 12, 13, 31]
    np.savetxt(tmp_path / "scans.csv", np.column_stack([seconds, images[:5]]), delimiter=",")
    load_example("windowed_streaming").run(
        [
            *("--input", str(tmp_path / "scans.csv")),
            *("--output", str(tmp_path / "out")),
            *("--model_path", samples.digits_classifier()),
            *("--window", "10"),
            *("--rate", "100"),
            "--job_name=passed-through-to-beam",
        ]
    )
    assert [(start, count) for start, count, _ in read_windows(tmp_path / "out")] == [
        ("1970-01-01T00:00:00Z", 1),
        ("1970-01-01T00:00:10Z", 3),
        ("1970-01-01T00:00:30Z", 1),
    ]


def test_missing_model_is_named_in_the_error(load_example, tmp_path):
    missing = str(tmp_path / "nowhere.pickle")
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.pickle"):
        load_example("windowed_streaming").run(["--model_path", missing])
