"""Small batches of several threads share a call, and each thread gets its own results or its own error."""

import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import apache_beam as beam
import pytest

from common import RUNNER, linear_regression
from runinference import ModelHandler, RunInference
from runinference.batching.policy import BatchPolicy
from runinference.serving.batch_coalescer import BatchCoalescer
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from runinference.transforms.engine import InferenceEngine


class Model:
    """Doubles numbers; its first call waits until it is let go, so that others form a line."""

    def __init__(self, memory=1_000):
        self.memory = memory
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
        if len(numbers) > self.memory:
            raise MemoryError
        return [2 * number for number in numbers]


def together(batches, most=64, policy=None, memory=1_000):
    """The model, and what each batch got: the first while the model is free, the others while it is busy."""
    model, coalescer = Model(memory), BatchCoalescer(policy or BatchPolicy())
    got = {}

    def work(batch):
        try:
            got[tuple(batch)] = coalescer.call(batch, most, model)
        except (ValueError, MemoryError) as error:
            got[tuple(batch)] = str(error) or type(error).__name__

    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    threads[0].start()
    assert model.entered.wait(30)
    for number, thread in enumerate(threads[1:], start=1):
        thread.start()
        while len(coalescer._line) < number:
            pass
    model.let_go.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return model, got


def test_a_single_thread_calls_the_model_itself():
    calls = []
    coalescer = BatchCoalescer(BatchPolicy())
    for _ in range(3):
        assert coalescer.call([1], 64, lambda batch: calls.append(batch) or batch) == [1]
    assert calls == [[1], [1], [1]]


def test_who_waits_shares_the_next_call_and_gets_its_own_results():
    model, got = together([[1, 2], [3], [4, 5], [6]])
    assert model.calls == [[1, 2], [3, 4, 5, 6]]
    assert got == {(1, 2): [2, 4], (3,): [6], (4, 5): [8, 10], (6,): [12]}


def test_a_shared_call_that_runs_out_of_memory_is_made_again_in_halves():
    batches = [[1], [2, 3], [4, 5], [6, 7], [8, 9, 10, 11, 12]]
    model, got = together(batches, memory=4)
    assert model.calls[1] == list(range(2, 13))
    assert [2, 3, 4, 5] in model.calls  # a half that fits
    assert got.pop((8, 9, 10, 11, 12)) == "MemoryError"  # its own; who called divides it
    assert got == {tuple(batch): [2 * n for n in batch] for batch in batches[:4]}


def test_a_call_holds_no_more_than_a_batch_may():
    model, got = together([[1], [2, 3], [4, 5], [6, 7]], most=4)
    assert model.calls == [[1], [2, 3, 4, 5], [6, 7]]
    assert len(got) == 4
    n_bytes = 2 * (1).__sizeof__()
    model, got = together([[1], [2, 3], [4]], policy=BatchPolicy(max_batch_bytes=n_bytes))
    assert model.calls == [[1], [2, 3], [4]]


def test_an_error_is_met_by_the_thread_whose_batch_it_is_and_by_no_other():
    model, got = together([[1], [2], [-1], [3]])
    assert got == {(1,): [2], (2,): [4], (-1,): "minus one", (3,): [6]}
    assert model.calls[1] == [2, -1, 3]


def test_after_an_error_the_model_is_free_again():
    coalescer = BatchCoalescer(BatchPolicy())

    def fail(batch):
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            coalescer.call([1], 64, fail)
    assert coalescer.call([1], 64, list) == [1]


def test_many_threads_each_get_their_own():
    coalescer = BatchCoalescer(BatchPolicy())
    wrong = []

    def work(thread):
        for number in range(200):
            batch = [(thread, number), (thread, -number)]
            results = coalescer.call(batch, 8, list)
            if results != batch:
                wrong.append((batch, results))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


class Gated(ModelHandler):
    """Doubles up to ``memory`` numbers at a time; where there is a gate, its next call waits until it opens."""

    calls: list[int] = []
    memory = 1_000
    gate = None
    entered = threading.Event()

    def load_model(self):
        return None

    def may_join_threads(self):
        return True

    def run_inference(self, batch, model, inference_args=None):
        self.calls.append(len(batch))
        gate, Gated.gate = Gated.gate, None
        if gate is not None:
            self.entered.set()
            assert gate.wait(30)
        if len(batch) > self.memory:
            raise MemoryError
        return [2 * number for number in batch]


class RecordingEngine(InferenceEngine):
    """Records the metrics of its calls instead of reporting them."""

    def __init__(self, config):
        super().__init__(config)
        self.recorded = Mock()
        self.metrics = Mock(for_version=lambda version: [self.recorded])

    def sizes(self):
        return [call.args[0] for call in self.recorded.batch_sized.call_args_list]


def threads_of_a_step(n, memory=1_000):
    """The engines of ``n`` threads that share a model, and what calls them together: 4 numbers each."""
    Gated.calls, Gated.memory = [], memory
    step = RunInference(Gated(min_batch_size=16, max_batch_size=16))._config()
    threads = [RecordingEngine(step) for _ in range(n)]
    version = threads[0].router.route(None)

    def call_together():
        Gated.gate = gate = threading.Event()
        Gated.entered.clear()
        with ThreadPoolExecutor(n) as pool:
            outcomes = [pool.submit(threads[0].infer, version, [0, 0, 0, 0])]
            assert Gated.entered.wait(30)
            line = (
                threads[0]
                .session.models.coalescer_for(step.session.models.name, version.name, version)
                ._line
            )
            for number, thread in enumerate(threads[1:], start=1):
                outcomes.append(pool.submit(thread.infer, version, [number] * 4))
                while len(line) < number:
                    pass
            gate.set()
        assert [each.result() for each in outcomes] == [[2 * k] * 4 for k in range(n)]

    return threads, version, call_together


def test_a_shared_call_that_runs_out_of_memory_lowers_the_size_and_the_next_ones_fit():
    threads, version, call_together = threads_of_a_step(4, memory=8)
    call_together()
    assert Gated.calls == [4, 12, 8, 4]
    assert threads[0].session.size_for(version).max_size == 6
    Gated.calls.clear()
    call_together()
    assert Gated.calls == [4, 4, 4, 4]


def test_a_shared_call_that_fits_raises_the_size_again():
    threads, version, call_together = threads_of_a_step(3, memory=8)
    threads[0].session.size_for(version).record_out_of_memory(16)
    for _ in range(32):
        call_together()
    assert threads[0].session.size_for(version).max_size == 16


def test_a_shared_call_is_measured_once_with_the_elements_of_all():
    threads, _, call_together = threads_of_a_step(4)
    call_together()
    assert Gated.calls == [4, 12]
    assert sorted(size for thread in threads for size in thread.sizes()) == [4, 12]
    assert sum(thread.recorded.batch_timed.call_count for thread in threads) == 2
    assert [thread.recorded.inferred.call_args.args for thread in threads] == [(4,)] * 4


def test_calls_whose_arguments_may_differ_are_not_shared(tmp_path):
    handler = SklearnModelHandlerNumpy(model_uri=linear_regression(tmp_path / "model.pickle"))
    with beam.Pipeline(runner=RUNNER) as pipeline:
        arguments = beam.pvalue.AsDict(pipeline | beam.Create([("a", 1)]))
        assert RunInference(handler, inference_args={"a": 1})._config().session.dynamic_batching
        assert (
            not RunInference(handler, inference_args=arguments)._config().session.dynamic_batching
        )
