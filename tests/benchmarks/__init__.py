"""Four clocks on the same work: the bare loop, a pipeline without a model, this library, and Beam's.

    PYTHONPATH=tests python -m benchmarks --workload W1 --rounds 5

A workload is a module that offers ``cases(scale)``; see ``harness.Case``.
"""
