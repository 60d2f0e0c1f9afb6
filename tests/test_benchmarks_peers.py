"""The jobs of the comparison with other engines are correct. The engines are not installed."""

import json

import pyarrow.parquet as pq
import pytest

from benchmarks.harness import Outcome
from benchmarks.peers.__main__ import JOBS, main
from benchmarks.peers.engines import ENGINES


@pytest.mark.parametrize("workload", JOBS)
def test_parquet_files_and_worker_functions_give_the_results_of_the_workload(workload):
    job = JOBS[workload](0.0001)
    predict = job.load(job.model_path)
    table = pq.read_table(job.folder)
    outcome = Outcome()
    for batch in table.to_batches(max_chunksize=job.batch_size):
        features = batch["features"].to_numpy(zero_copy_only=False)
        outcome.add_batch(batch["number"], predict(list(features)))
    job.check("an engine", outcome)
    with pytest.raises(AssertionError):
        job.check("an engine", Outcome(outcome.n, outcome.numbers, outcome.products + 1))


def test_absent_engine_is_reported(tmp_path, capsys, monkeypatch):
    for engine in ENGINES:
        monkeypatch.setattr(engine, "package", "no_such_package")
    path = tmp_path / "numbers.json"
    main(["--only", "W1", "--scale", "0.0001", "--rounds", "1", "--json", str(path)])
    assert json.loads(path.read_text())["absent"].keys() == {"Ray Data", "Spark", "Daft"}
    assert capsys.readouterr().out.count("absent: no_such_package is") == 3
