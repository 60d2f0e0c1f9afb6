"""The benchmarks for a GPU run on a CPU with tiny models and produce correct results."""

import json

import pytest
import torch

from benchmarks.gpu.__main__ import NO_DEVICE, WORKLOADS, main, make_cases
from benchmarks.gpu.loops import run_in_turn, run_overlapped


@pytest.mark.parametrize("workload", WORKLOADS)
def test_workload_produces_correct_results(workload):
    cases = list(make_cases(workload, "cpu", tiny=True))
    case = cases[workload == "images"]  # mixed precision and channels_last
    for name in ("limit", "overlapped loop", "floor", "ours"):
        if name in case.runs:
            case.check(name, case.runs[name]())


def test_worker_threads_produce_correct_results():
    *_, threaded = make_cases("images", "cpu", tiny=True)
    threaded.check("ours", threaded.runs["ours"]())


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_overlapped_loop_returns_all_batches_in_order(n):
    batches = [[torch.tensor([float(at), 1.0])] for at in range(n)]
    arguments = batches, lambda inputs: inputs + 1, torch.device("cpu")
    expected = [(x.tolist(), y.tolist()) for x, y in run_in_turn(*arguments)]
    assert [(x.tolist(), y.tolist()) for x, y in run_overlapped(*arguments)] == expected
    assert [inputs for inputs, _ in expected] == [[[at, 1]] for at in range(n)]


def test_failing_workload_keeps_the_numbers_of_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(WORKLOADS, "tokens", "tensors.no_such_cases")
    path = tmp_path / "numbers.json"
    options = ["--device", "cpu", "--tiny", "--rounds", "1", "--json", str(path)]
    assert main([*options, "--only", "tokens", "rows"]) == 1
    numbers = json.loads(path.read_text())
    assert numbers["device"] == "cpu"
    [rows] = numbers["cases"]
    assert rows["seconds"].keys() == {"limit", "overlapped loop", "floor", "ours", "Beam"}
    assert "Failed: tokens" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_machine_without_cuda_measures_nothing(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert main(["--json", str(path)]) == NO_DEVICE
    assert "no CUDA device" in capsys.readouterr().out
    assert not path.exists()
