"""Small batches of several threads share a model call, and each thread gets its own results or error."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import Mock

import apache_beam as beam
import pytest

from common import RUNNER, linear_regression
from runinference import ModelHandler, RunInference
from runinference.batching.measured_switch import MeasuredSwitch
from runinference.batching.policy import BatchPolicy
from runinference.serving import dynamic_batching
from runinference.serving.dynamic_batching import DynamicBatcher
from runinference.sklearn_inference import SklearnModelHandlerNumpy
from runinference.transforms.engine import InferenceEngine
from serving import workers


class Model:
    """Doubles numbers. Its first call blocks until ``resume`` is set, so that other batches are queued."""

    def __init__(self, memory=1_000):
        self.memory = memory
        self.calls = []
        self.entered = threading.Event()
        self.resume = threading.Event()

    def resumed(self):
        """Return the model, without waiting for its first call."""
        self.resume.set()
        return self

    def __call__(self, numbers):
        self.calls.append(list(numbers))
        if len(self.calls) == 1:
            self.entered.set()
            assert self.resume.wait(30)
        if -1 in numbers:
            raise ValueError("minus one")
        if len(numbers) > self.memory:
            raise MemoryError
        return [2 * number for number in numbers]


def call_together(batches, max_size=64, policy=None, memory=1_000):
    """Call a model with the first batch, and with the others while it is busy. Return it and the outcomes."""
    model, dynamic_batcher = Model(memory), DynamicBatcher(policy or BatchPolicy())
    outcomes = {}

    def work(batch):
        try:
            outcomes[tuple(batch)] = dynamic_batcher.call(batch, max_size, model)
        except (ValueError, MemoryError) as error:
            outcomes[tuple(batch)] = str(error) or type(error).__name__

    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    threads[0].start()
    assert model.entered.wait(30)
    for number, thread in enumerate(threads[1:], start=1):
        thread.start()
        while len(dynamic_batcher._queue) < number:
            pass
    model.resume.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return model, outcomes


def test_a_single_thread_makes_its_own_calls():
    calls = []
    dynamic_batcher = DynamicBatcher(BatchPolicy())
    for _ in range(3):
        assert dynamic_batcher.call([1], 64, lambda batch: calls.append(batch) or batch) == [1]
    assert calls == [[1], [1], [1]]


def test_combines_queued_batches_and_returns_to_each_its_results():
    model, outcomes = call_together([[1, 2], [3], [4, 5], [6]])
    assert model.calls == [[1, 2], [3, 4, 5, 6]]
    assert outcomes == {(1, 2): [2, 4], (3,): [6], (4, 5): [8, 10], (6,): [12]}


def test_repeats_a_combined_call_in_halves_when_out_of_memory():
    batches = [[1], [2, 3], [4, 5], [6, 7], [8, 9, 10, 11, 12]]
    model, outcomes = call_together(batches, memory=4)
    assert model.calls[1] == list(range(2, 13))
    assert [2, 3, 4, 5] in model.calls  # a half that fits
    assert outcomes.pop((8, 9, 10, 11, 12)) == "MemoryError"  # the caller divides its own batch
    assert outcomes == {tuple(batch): [2 * n for n in batch] for batch in batches[:4]}


def test_a_combined_call_keeps_the_limits_of_a_batch():
    model, outcomes = call_together([[1], [2, 3], [4, 5], [6, 7]], max_size=4)
    assert model.calls == [[1], [2, 3, 4, 5], [6, 7]]
    assert len(outcomes) == 4
    policy = BatchPolicy(max_batch_bytes=4 * (1).__sizeof__())
    model, outcomes = call_together([[1], [2, 3], [4, 5], [6, 7]], policy=policy)
    assert model.calls == [[1], [2, 3, 4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("max_size", "policy"),
    [(5, BatchPolicy()), (64, BatchPolicy(max_batch_bytes=5 * (1).__sizeof__()))],
)
def test_a_large_batch_does_not_wait_for_the_calls_of_other_threads(max_size, policy):
    model, dynamic_batcher = Model(), DynamicBatcher(policy)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(dynamic_batcher.call, [1], max_size, model)
        assert model.entered.wait(30)
        assert dynamic_batcher.call([2, 3, 4], max_size, model) == [4, 6, 8]
        model.resume.set()
        assert first.result(30) == [2]


def test_an_error_is_raised_only_in_the_thread_whose_batch_fails():
    model, outcomes = call_together([[1], [2], [-1], [3]])
    assert outcomes == {(1,): [2], (2,): [4], (-1,): "minus one", (3,): [6]}
    assert model.calls[1] == [2, -1, 3]


def test_can_be_called_again_after_an_error():
    dynamic_batcher = DynamicBatcher(BatchPolicy())

    def fail(batch):
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            dynamic_batcher.call([1], 64, fail)
    assert dynamic_batcher.call([1], 64, list) == [1]


def test_many_threads_get_their_own_results():
    check_many_threads()


def check_many_threads():
    dynamic_batcher = DynamicBatcher(BatchPolicy())

    def work(thread):
        for number in range(200):
            batch = [(thread, number), (thread, -number)]
            assert dynamic_batcher.call(batch, 8, list) == batch
        return thread

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(work, thread) for thread in range(12)]
        assert [each.result(60) for each in running] == [*range(12)]


class AlwaysOn(MeasuredSwitch):
    """A switch that is on, without measuring."""

    def __init__(self, *_):
        super().__init__()
        self.is_on = True

    def record(self, n_elements, seconds):
        """Keep the decision."""


@pytest.fixture
def set_call_seconds(monkeypatch):
    """Let calls wait for returning threads, and set the seconds that each call takes, and the maximum wait."""

    def set_seconds(seconds, max_wait=3_600):
        monkeypatch.setattr(dynamic_batching, "MeasuredSwitch", AlwaysOn)
        clock = Mock(monotonic=Mock(side_effect=itertools.count(step=seconds)))
        monkeypatch.setattr(dynamic_batching, "time", clock)
        monkeypatch.setattr(dynamic_batching, "_MAX_WAIT_SECS", max_wait)

    return set_seconds


def run_combined_call(dynamic_batcher, model=None, then=lambda call, number: None):
    """Call a model with [0], then with [1], [2], and [3] together, and then call a function in each thread.

    Returns the model.
    """
    model = model or Model()

    def work(number):
        if number:
            assert model.entered.wait(30)
        dynamic_batcher.call([number], 64, model)
        then(lambda batch: dynamic_batcher.call(batch, 64, model), number)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(work, number) for number in range(4)]
        while len(dynamic_batcher._queue) < 3:
            pass
        model.resume.set()
        for each in running:
            each.result(60)
    return model


def test_a_call_waits_for_the_threads_of_the_last_one(set_call_seconds):
    set_call_seconds(3_600)
    model = run_combined_call(
        DynamicBatcher(BatchPolicy()), then=lambda call, number: number and call([10 + number])
    )
    assert [sorted(call) for call in model.calls] == [[0], [1, 2, 3], [11, 12, 13]]


@pytest.mark.parametrize(("seconds", "max_wait"), [(0.01, 3_600), (3_600, 0.01)])
def test_a_call_waits_at_most_as_long_as_the_last_one_took_and_the_maximum(
    set_call_seconds, seconds, max_wait
):
    set_call_seconds(seconds, max_wait)
    dynamic_batcher = DynamicBatcher(BatchPolicy())
    run_combined_call(dynamic_batcher)
    # The threads of the last call don't return.
    assert dynamic_batcher.call([10], 64, list) == [10]


@pytest.mark.parametrize(
    ("max_size", "policy"),
    [(4, BatchPolicy()), (64, BatchPolicy(max_batch_bytes=4 * (1).__sizeof__()))],
)
def test_a_call_does_not_wait_if_its_batch_is_full(set_call_seconds, max_size, policy):
    set_call_seconds(3_600)
    dynamic_batcher = DynamicBatcher(policy)
    run_combined_call(dynamic_batcher)  # three threads are expected
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(dynamic_batcher.call, [n, n], max_size, list) for n in (1, 2)]
        assert [each.result(60) for each in calls] == [[1, 1], [2, 2]]


def test_waiting_threads_get_their_own_results(set_call_seconds):
    set_call_seconds(0.001)
    check_many_threads()


class Timed(Model):
    """A model that takes a second per element."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def __call__(self, numbers):
        results = super().__call__(numbers)
        self.clock.now += len(numbers)
        return results


def test_measures_the_time_and_the_elements_of_all_calls_but_no_idle_time(monkeypatch):
    recorded = []

    class Recording(AlwaysOn):
        def __init__(self, *_):
            super().__init__()
            self.is_on = False

        def record(self, n_elements, seconds):
            recorded.append((n_elements, seconds))

    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(dynamic_batching, "MeasuredSwitch", Recording)
    monkeypatch.setattr(dynamic_batching, "time", clock)
    dynamic_batcher = DynamicBatcher(BatchPolicy())
    run_combined_call(dynamic_batcher, Timed(clock))
    dynamic_batcher.call([4], 64, Timed(clock).resumed())
    run_combined_call(dynamic_batcher, Timed(clock))
    clock.now += 1_000
    run_combined_call(dynamic_batcher, Timed(clock))
    assert recorded == [(3, 3), (1 + 1 + 3, 5), (3, 3)]


class Gated(ModelHandler):
    """Doubles up to ``memory`` numbers at a time. If ``gate`` is set, the next call waits for it."""

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
    """Return engines of ``n`` threads that share a model, its version, and a function that calls all at once."""
    Gated.calls, Gated.memory = [], memory
    step = RunInference(Gated(min_batch_size=16, max_batch_size=16))._config()
    threads = [RecordingEngine(step) for _ in range(n)]
    version = threads[0].router.route(None)

    def call_together():
        Gated.gate = gate = threading.Event()
        Gated.entered.clear()
        n_before = len(Gated.calls)
        with ThreadPoolExecutor(n) as pool:
            outcomes = [pool.submit(workers.infer, threads[0], version, [0, 0, 0, 0])]
            assert Gated.entered.wait(30)
            registry = threads[0].session.registry
            queue = registry.dynamic_batcher_for(step.session.models.name, version)._queue
            for number, thread in enumerate(threads[1:], start=1):
                outcomes.append(pool.submit(workers.infer, thread, version, [number] * 4))
                while len(queue) < number and len(Gated.calls) - n_before <= number:
                    pass  # a batch that is large for the model isn't queued
            gate.set()
        assert [each.result() for each in outcomes] == [[2 * k] * 4 for k in range(n)]

    return threads, version, call_together


def test_a_combined_call_that_runs_out_of_memory_lowers_the_batch_size():
    threads, version, call_together = threads_of_a_step(4, memory=8)
    call_together()
    assert Gated.calls == [4, 12, 8, 4]
    assert threads[0].session.size_for(version).max_size == 6
    Gated.calls.clear()
    call_together()
    assert Gated.calls == [4, 4, 4, 4]


def test_combined_calls_that_fit_raise_the_batch_size_again():
    threads, version, call_together = threads_of_a_step(3, memory=8)
    threads[0].session.size_for(version).record_out_of_memory(16)
    for _ in range(32):
        call_together()
    assert threads[0].session.size_for(version).max_size == 16


def test_metrics_count_a_combined_call_once_with_all_its_elements():
    threads, _, call_together = threads_of_a_step(4)
    call_together()
    assert Gated.calls == [4, 12]
    assert sorted(size for thread in threads for size in thread.sizes()) == [4, 12]
    assert sum(thread.recorded.batch_timed.call_count for thread in threads) == 2
    assert [thread.recorded.count.call_args.args for thread in threads] == [
        ("num_inferences", 4)
    ] * 4


def test_does_not_combine_calls_whose_arguments_may_differ(tmp_path):
    handler = SklearnModelHandlerNumpy(model_uri=linear_regression(tmp_path / "model.pickle"))
    with beam.Pipeline(runner=RUNNER) as pipeline:
        arguments = beam.pvalue.AsDict(pipeline | beam.Create([("a", 1)]))
        assert RunInference(handler, inference_args={"a": 1})._config().session.dynamic_batching
        assert (
            not RunInference(handler, inference_args=arguments)._config().session.dynamic_batching
        )
