"""Benchmarks that compare a bare loop, a pipeline without a model, this library, and Beam's RunInference.

    PYTHONPATH=tests python -m benchmarks --only W1 --rounds 5

A workload is a module with a function `cases(scale)` that yields instances of `harness.Case`.
"""
