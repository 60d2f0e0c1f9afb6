"""Benchmarks on a GPU, with models of random weights. Nothing is downloaded.

    PYTHONPATH=tests python -m benchmarks.gpu

Each contender loads the model from the same file in each round, because a job does so, too. A workload is a
function that takes a `Setup` and yields instances of `harness.Case`.
"""
