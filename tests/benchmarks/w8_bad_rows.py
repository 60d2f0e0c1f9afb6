"""W8: W1 with exception handling, where 0, 0.1 or 1 % of the rows make the model raise an error."""

import functools

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn

from benchmarks import w1_rows
from benchmarks.harness import Case, Outcome, Sink, batches, run_pipeline
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy

SIZE = 64

#: Shares of failing rows, and the goals for the throughput relative to a run without failing rows.
GOALS = {0: 0.97, 0.001: 0.8, 0.01: 0.5}
CLEAN = "ours without failing rows and exception handling"


def cases(scale):
    model, path = w1_rows.train_model()
    n = max(2_000, int(24_000 * scale))
    options = {
        "inference_fn": predict_and_count,
        "min_batch_size": SIZE,
        "max_batch_size": SIZE,
    }
    ours = RunInference(SklearnModelHandlerNumpy(path, **options))
    beams = beam_base.RunInference(beam_sklearn.SklearnModelHandlerNumpy(path, **options))
    for share, goal in GOALS.items():
        runs = {
            "limit": functools.partial(bare_loop, model, n, share),
            "floor": functools.partial(w1_rows.floor, n),
            "ours": functools.partial(run_with, n, share, ours.with_exception_handling),
            "Beam": functools.partial(run_with, n, share, beams.with_exception_handling),
            CLEAN: functools.partial(run_with, n, 0, lambda: ours),
        }
        yield Case(
            workload="W8",
            variant=f"{100 * share:g} % failing, batches of {SIZE}",
            n=n,
            runs={
                name: functools.partial(run_and_count, run, n, share) for name, run in runs.items()
            },
            check=functools.partial(check, model, n, share),
            goals={"valid rows delivered, ours": ("≥", 1), f"ours ÷ {CLEAN}": ("≥", goal)},
        )


class ModelCalls:
    """Counts of model calls and their rows."""

    rows = 0
    calls = 0


def predict_and_count(model, batch, inference_args=None):
    ModelCalls.rows += len(batch)
    ModelCalls.calls += 1
    return model.predict(np.stack(batch))


@functools.cache
def rows(n, share):
    """Return the rows of W1, some with a NaN, for which the estimator raises an error."""
    elements = list(w1_rows.rows(n))
    for number in failing_indices(n, share):
        elements[number] = elements[number].copy()
        elements[number][5] = np.nan
    return elements


@functools.cache
def failing_indices(n, share):
    return frozenset(np.random.default_rng(3).choice(n, round(n * share), replace=False).tolist())


@functools.cache
def valid_rows(n, share):
    return [
        row for number, row in enumerate(rows(n, share)) if number not in failing_indices(n, share)
    ]


def bare_loop(model, n, share):
    """Run the loop on the valid rows only."""
    outcome = Outcome()
    for batch in batches(valid_rows(n, share), SIZE):
        features = np.stack(batch)
        outcome.add_batch(features[:, 0], model.predict(features))
    return outcome


class CountDeadLetters(beam.DoFn):
    """Count dead letters."""

    n = 0

    def process(self, element):
        CountDeadLetters.n += 1


def run_with(n, share, make):
    class Step(beam.PTransform):
        def expand(self, elements):
            results = elements | "Infer" >> make()
            if isinstance(results, beam.PCollection):
                return results
            _ = results[1].failed_inferences | beam.ParDo(CountDeadLetters())
            return results[0]

    return run_pipeline(functools.partial(rows, n, share), Step(), Sink(w1_rows.first_value))


def run_and_count(run, n, share):
    """Run a contender and count model calls and results."""
    ModelCalls.rows = ModelCalls.calls = CountDeadLetters.n = 0
    outcome = run()
    if ModelCalls.rows:
        outcome.metrics = {
            "valid rows delivered": outcome.n / (n - len(failing_indices(n, share))),
            "model rows per row": ModelCalls.rows / n,
            "dead letters": CountDeadLetters.n,
        }
    return outcome


@functools.cache
def expected(model, n, share):
    """Return the number and the prediction of each valid row."""
    features = np.stack(valid_rows(n, share))
    return features[:, 0], model.predict(features)


def check(model, n, share, contender, outcome):
    """Check results. Ours must deliver exactly the valid rows. Beam's loses some, but the rest must be correct."""
    if contender == "floor":
        return w1_rows.check(model, n, contender, outcome)
    if contender == "Beam":
        assert outcome.n <= n - len(failing_indices(n, share))
    else:
        outcome.check(*expected(model, n, 0 if contender == CLEAN else share))
    if contender == "ours":
        n_dead = CountDeadLetters.n
        assert n_dead == len(failing_indices(n, share)), f"{n_dead} dead letters"
    w1_rows.check_sample(model, outcome)
