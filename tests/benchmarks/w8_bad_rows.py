"""W8: W1 with exception handling on, where 0, 0.1 and 1 % of the rows make the model raise."""

import functools

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import sklearn_inference as beam_sklearn

from benchmarks import w1_rows
from benchmarks.harness import Case, KeepResult, Outcome, batches, run_pipeline, same_rows
from runinference import RunInference
from runinference.sklearn_inference import SklearnModelHandlerNumpy

FIXED = {"min_batch_size": 64, "max_batch_size": 64}


def cases(scale):
    model, path = w1_rows.trained()
    for share, options in ((0, {}), (0.001, FIXED), (0.01, FIXED)):
        n = max(2_000, int(200_000 * scale))
        size = options.get("max_batch_size", 1_024)
        ours = SklearnModelHandlerNumpy(path, inference_fn=counting, **options)
        peer = beam_sklearn.SklearnModelHandlerNumpy(path, inference_fn=counting, **options)
        handling = RunInference(ours).with_exception_handling
        runs = {
            "limit": functools.partial(bare_loop, model, n, share, size),
            "floor": functools.partial(w1_rows.floor, n),
            "ours": functools.partial(run_with, n, share, lambda handling=handling: handling()),
            "Beam": functools.partial(
                run_with,
                n,
                share,
                lambda peer=peer: beam_base.RunInference(peer).with_exception_handling(),
            ),
        }
        goals = {
            "good rows delivered, ours": ("≥", 1),
            "rows to the model a row, ours": ("≤", 1.15),
        }
        if share == 0:
            plain = functools.partial(run_with, n, share, lambda ours=ours: RunInference(ours))
            runs["ours without handling"] = plain
            goals = {"ours ÷ ours without handling": ("≥", 0.95)}
        elif share == 0.01:
            del goals["rows to the model a row, ours"]
        yield Case(
            workload="W8",
            variant=f"{100 * share:g} % bad, {f'batches of {size}' if options else 'default settings'}",
            n=n,
            runs={name: functools.partial(counted, run, n, share) for name, run in runs.items()},
            check=functools.partial(check, model, n, share),
            goals=goals,
        )


class Calls:
    """What the model was given."""

    rows = 0
    calls = 0


def counting(model, batch, inference_args=None):
    Calls.rows += len(batch)
    Calls.calls += 1
    return model.predict(np.stack(batch))


@functools.cache
def rows(n, share):
    """Those of W1, some of which hold a number that is none: the estimator raises for all of its batch."""
    elements = list(w1_rows.rows(n))
    for number in bad(n, share):
        elements[number] = elements[number].copy()
        elements[number][5] = np.nan
    return elements


@functools.cache
def bad(n, share):
    return frozenset(np.random.default_rng(3).choice(n, round(n * share), replace=False).tolist())


@functools.cache
def good_rows(n, share):
    return [row for number, row in enumerate(rows(n, share)) if number not in bad(n, share)]


def bare_loop(model, n, share, size):
    """The good rows alone, clean."""
    predictions = []
    for batch in batches(good_rows(n, share), size):
        predictions.extend(model.predict(np.stack(batch)))
    return Outcome(good_rows(n, share), predictions)


class Count(beam.DoFn):
    """Counts dead letters."""

    n = 0

    def process(self, element):
        Count.n += 1


def run_with(n, share, make):
    class Step(beam.PTransform):
        def expand(self, elements):
            results = elements | "Infer" >> make()
            if isinstance(results, beam.PCollection):
                return results
            _ = results[1].failed_inferences | beam.ParDo(Count())
            return results[0]

    return run_pipeline(functools.partial(rows, n, share), Step(), beam.ParDo(KeepResult()))


def counted(run, n, share):
    """A run, and what it cost and brought."""
    Calls.rows = Calls.calls = Count.n = 0
    outcome = run()
    facts = {}
    if Calls.rows:
        facts = {
            "good rows delivered": len(outcome.examples) / (n - len(bad(n, share))),
            "rows to the model a row": Calls.rows / n,
            "dead letters": Count.n,
        }
    return Outcome(outcome.examples, outcome.inferences, facts)


def check(model, n, share, contestant, outcome):
    """Ours: exactly the good rows came out. Beam's loses good ones; what comes must be right."""
    if contestant == "floor":
        return same_rows(outcome.examples, w1_rows.rows(n))
    if contestant != "Beam":
        same_rows(outcome.examples, good_rows(n, share))
    if contestant == "ours":
        assert Count.n == len(bad(n, share)), f"{Count.n} dead letters"
    predictions = model.predict(np.stack(outcome.examples))
    np.testing.assert_array_equal(np.asarray(outcome.inferences), predictions)
