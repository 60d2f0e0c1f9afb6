"""Small batches of several threads share a call, and each thread gets its own results or its own error."""

import threading

import apache_beam as beam
import pytest

from runinference import RunInference
from runinference.batching import BatchPolicy
from runinference.joining import Joiner
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from tiny import RUNNER, linear_regression


class Model:
    """Doubles numbers; its first call waits until it is let go, so that others form a line."""

    def __init__(self):
        self.calls = []
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, numbers):
        self.calls.append(list(numbers))
        if len(self.calls) == 1:
            self.entered.set()
            assert self.let_go.wait(30)
        if -1 in numbers:
            raise ValueError("minus one")
        return [2 * number for number in numbers], 100 * len(numbers)


def together(batches, most=64, policy=None):
    """The model, and what each batch got: the first while the model is free, the others while it is busy."""
    model, joiner = Model(), Joiner(policy or BatchPolicy())
    got = {}

    def work(batch):
        try:
            got[tuple(batch)] = joiner.call(batch, most, model)
        except ValueError as error:
            got[tuple(batch)] = str(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    threads[0].start()
    assert model.entered.wait(30)
    for number, thread in enumerate(threads[1:], start=1):
        thread.start()
        while len(joiner._line) < number:
            pass
    model.let_go.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return model, got


def test_a_single_thread_calls_the_model_itself():
    calls = []
    joiner = Joiner(BatchPolicy())
    for _ in range(3):
        results, took = joiner.call([1], 64, lambda batch: (calls.append(batch) or batch, 5))
        assert (results, took) == ([1], 5)
    assert calls == [[1], [1], [1]]


def test_who_waits_shares_the_next_call_and_gets_its_own_results_and_share_of_the_time():
    model, got = together([[1, 2], [3], [4, 5], [6]])
    assert model.calls == [[1, 2], [3, 4, 5, 6]]
    assert got == {
        (1, 2): ([2, 4], 200),
        (3,): ([6], 100),
        (4, 5): ([8, 10], 200),
        (6,): ([12], 100),
    }


def test_a_call_holds_no_more_than_a_batch_may():
    model, got = together([[1], [2, 3], [4, 5], [6, 7]], most=4)
    assert model.calls == [[1], [2, 3, 4, 5], [6, 7]]
    assert len(got) == 4
    n_bytes = 2 * (1).__sizeof__()
    model, got = together([[1], [2, 3], [4]], policy=BatchPolicy(max_bytes=n_bytes))
    assert model.calls == [[1], [2, 3], [4]]


def test_an_error_is_met_by_the_thread_whose_batch_it_is_and_by_no_other():
    model, got = together([[1], [2], [-1], [3]])
    assert got == {(1,): ([2], 100), (2,): ([4], 100), (-1,): "minus one", (3,): ([6], 100)}
    assert model.calls[1] == [2, -1, 3]


def test_after_an_error_the_model_is_free_again():
    joiner = Joiner(BatchPolicy())

    def fail(batch):
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            joiner.call([1], 64, fail)
    assert joiner.call([1], 64, lambda batch: (batch, 1)) == ([1], 1)


def test_many_threads_each_get_their_own():
    joiner = Joiner(BatchPolicy())
    wrong = []

    def work(thread):
        for number in range(200):
            batch = [(thread, number), (thread, -number)]
            results, _ = joiner.call(batch, 8, lambda joined: (list(joined), len(joined)))
            if results != batch:
                wrong.append((batch, results))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_calls_whose_arguments_may_differ_are_not_shared(tmp_path):
    handler = SklearnModelHandlerNumpy(model_uri=linear_regression(tmp_path / "model.pickle"))
    with beam.Pipeline(runner=RUNNER) as pipeline:
        arguments = beam.pvalue.AsDict(pipeline | beam.Create([("a", 1)]))
        assert RunInference(handler, inference_args={"a": 1})._step().joins
        assert not RunInference(handler, inference_args=arguments)._step().joins
