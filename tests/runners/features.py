"""The pipelines that run on each runner. Each has a plain loop that computes its right output.

Each pipeline also names controls: pipelines of plain functions with the same kind of source, state, or output.
If a pipeline fails and a control fails, too, the limit is the runner's own.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import httpx
import numpy as np
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from sklearn.linear_model import LinearRegression

from runinference import (
    Backoff,
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    ModelMetadata,
    PredictionResult,
    RemoteModelHandler,
    RunInference,
)
from runinference.pytorch_inference import PytorchModelHandlerTensor
from runinference.samples.local_server import ErrorResponse
from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas

#: The number of elements of most pipelines.
N = 60
#: The time between two elements of a stream.
STREAM_INTERVAL_SECS = 0.1


@dataclass(frozen=True)
class Setting:
    """Where a pipeline runs.

    Attributes:
        folder: A folder for the files of the pipeline, which all workers can read.
        url: The address of the server of `SquareServer`.
        lead_secs: The time that the runner needs until a stream starts.
    """

    folder: Path
    url: str
    lead_secs: float = 2

    def child(self, name: str) -> Setting:
        return replace(self, folder=self.folder / name)

    def path(self, name: str) -> str:
        return str(self.folder / name)


@dataclass(frozen=True)
class Feature:
    """A pipeline and its right output.

    Attributes:
        name: The name in the table.
        build: Builds the pipeline, and returns a PCollection of JSON values.
        expected: Returns the JSON values that the pipeline must output, in any order.
        controls: Build the control pipelines, which must output the numbers from 0 to `N` - 1.
        check: Raises `AssertionError` if the output, the metrics, or the error of the run is wrong. By default, it
            compares the output with `expected`.
        verify_control: Raises `AssertionError` if something else than the output of a control is wrong.
    """

    name: str
    build: Callable[[beam.Pipeline, Setting], beam.PCollection]
    expected: Callable[[], list[Any]]
    controls: tuple[Callable[[beam.Pipeline, Setting], beam.PCollection], ...]
    check: Callable[[Outcome, Setting], None] | None = None
    verify_control: Callable[[Outcome], None] | None = None

    def verify(self, outcome: Outcome, setting: Setting) -> None:
        """Raise `AssertionError` with the difference if the pipeline's output is wrong."""
        if self.check is not None:
            self.check(outcome, setting)
        else:
            outcome.verify_equal(self.expected())


@dataclass(frozen=True)
class Outcome:
    """What a pipeline did.

    Attributes:
        output: The JSON values that arrived, or None if the pipeline failed.
        read_counters: Returns the values of the run's counters by name.
        error: The pipeline's error.
    """

    output: list[Any] | None
    read_counters: Callable[[], dict[str, int]]
    error: str | None = None

    def verify_success(self) -> None:
        """Raise `AssertionError` with the last line of the error if the pipeline failed."""
        lines = [line.strip() for line in (self.error or "").splitlines() if line.strip()]
        assert self.error is None, lines[-1][:300]

    def verify_equal(self, expected: list[Any]) -> None:
        self.verify_success()
        assert self.output is not None, "no output was written"
        rest = [to_text(value) for value in self.output]
        missing = []
        for value in map(to_text, expected):
            if value in rest:
                rest.remove(value)
            else:
                missing.append(value)
        counts = [(missing, f"of {len(expected)} missing"), (rest, "unexpected")]
        difference = ", ".join(
            f"{len(values)} {what} ({'; '.join(values[:3])})" for values, what in counts if values
        )
        assert not missing + rest, difference


def to_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# Models


def save_linear_model(path: str, slope: float) -> None:
    """Save a model that multiplies by `slope`, and move the file into place when it is complete."""
    model = LinearRegression(fit_intercept=False).fit([[1.0]], [slope])
    Path(f"{path}.part").write_bytes(pickle.dumps(model))
    Path(f"{path}.part").rename(path)


def linear_handler(path: str, slope: float, **options: Any) -> SklearnModelHandlerNumpy:
    save_linear_model(path, slope)
    return SklearnModelHandlerNumpy(model_uri=path, **options)


def to_vector(number: float) -> np.ndarray:
    return np.array([float(number)])


def to_number(result: PredictionResult) -> list[float]:
    """Return the number that was the example, and its prediction."""
    return [int(result.example[0]), round(float(np.ravel(result.inference)[0]), 6)]


class Multiply(ModelHandler):
    """Multiply numbers by a factor from a file, and append a line to another file for each load and each batch."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    def load_model(self) -> float:
        record(f"{self.path}.loads", str(os.getpid()))
        return float(Path(self.path).read_text())

    def run_inference(self, batch: Any, model: float, inference_args: Any = None) -> Any:
        record(f"{self.path}.batches", json.dumps([number_of(x) for x in batch]))
        if any(x == "crash" for x in batch):
            os._exit(17)
        offset = (inference_args or {}).get("offset", 0)
        return [PredictionResult(x, number_of(x) * model + offset) for x in batch]


def number_of(element: Any) -> float:
    """Return a number, or the length of a list. Raise an error for other elements."""
    if isinstance(element, str):
        raise ValueError(f"{element!r} is not a number")
    return len(element) if isinstance(element, list) else element


def multiply_handler(setting: Setting, factor: float, **options: Any) -> Multiply:
    path = setting.path("factor.txt")
    Path(path).write_text(str(factor))
    return Multiply(path, **options)


def record(path: str, line: str) -> None:
    """Append a line to a file. Each line is one write, so lines of several processes don't mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def recorded(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


class SquareServer:
    """Square numbers. The first attempt of a request fails with status 503, and negative numbers with 400."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()

    def __call__(self, path: str, headers: Any, body: Any) -> list[int]:
        if tuple(body) not in self.seen:
            self.seen.add(tuple(body))
            raise ErrorResponse(503, {"error": "try again"})
        if any(x < 0 for x in body):
            raise ErrorResponse(400, {"error": "a number is negative"})
        return [x * x for x in body]


class SquareEndpoint(RemoteModelHandler):
    """Square numbers with the server of `SquareServer`."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(
            backoff=Backoff(initial_secs=0.01, multiplier=1), overload_ratio=100, **options
        )
        self.url = url

    def create_client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def request(self, batch: Any, model: httpx.Client, inference_args: Any = None) -> Any:
        response = model.post("/", json=list(batch)).raise_for_status()
        return map(PredictionResult, batch, response.json())


# Sources


def numbers(pipeline: beam.Pipeline, n: int = N) -> beam.PCollection:
    return pipeline | beam.Create(range(n)) | beam.Reshuffle()


def stream(pipeline: beam.Pipeline, setting: Setting, n: int = N) -> beam.PCollection:
    """Return an unbounded PCollection of the numbers from 0 to n - 1, one every `STREAM_INTERVAL_SECS`."""
    start = time.time() + setting.lead_secs
    stop = start + n * STREAM_INTERVAL_SECS
    data = [(Timestamp(start + i * STREAM_INTERVAL_SECS), i) for i in range(n)]
    return pipeline | PeriodicImpulse(start, stop, STREAM_INTERVAL_SECS, data=data)


def vectors(pipeline: beam.Pipeline, n: int = N) -> beam.PCollection:
    return numbers(pipeline, n) | beam.Map(to_vector)


def doubled(n: int = N) -> list[Any]:
    return [[i, 2.0 * i] for i in range(n)]


# Controls


def plain_batch(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return numbers(pipeline) | beam.Map(lambda x: x)


#: A pipeline that each runner must run, or else nothing can be said about the others.
PLAIN = Feature("A pipeline without RunInference", plain_batch, lambda: list(range(N)), ())


def plain_stream(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return stream(pipeline, setting) | beam.Map(lambda x: x)


def plain_tags(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    even, odd = numbers(pipeline) | beam.Partition(lambda x, _: x % 2, 2)
    return (even, odd) | beam.Flatten()


class CollectInState(beam.DoFn):
    """Keep elements in state until the window ends."""

    ELEMENTS = BagStateSpec("elements", beam.coders.VarIntCoder())
    END = TimerSpec("end", beam.TimeDomain.WATERMARK)

    def process(
        self,
        element: Any,
        elements: Any = beam.DoFn.StateParam(ELEMENTS),
        end: Any = beam.DoFn.TimerParam(END),
        window: Any = beam.DoFn.WindowParam,
    ) -> None:
        elements.add(element[1])
        end.set(window.end)

    @on_timer(END)
    def emit(self, elements: Any = beam.DoFn.StateParam(ELEMENTS)) -> Any:
        yield from elements.read()
        elements.clear()


class WaitInState(beam.DoFn):
    """Keep elements in state for two seconds. Drop them if the timer fires too early."""

    WAIT_SECS = 2
    ELEMENTS = BagStateSpec("elements", beam.coders.VarIntCoder())
    DUE = ReadModifyWriteStateSpec("due", beam.coders.FloatCoder())
    TIMER = TimerSpec("timer", beam.TimeDomain.REAL_TIME)

    def process(
        self,
        element: Any,
        elements: Any = beam.DoFn.StateParam(ELEMENTS),
        due: Any = beam.DoFn.StateParam(DUE),
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> None:
        elements.add(element[1])
        if due.read() is None:
            due.write(time.time() + self.WAIT_SECS)
            timer.set(Timestamp(due.read()))

    @on_timer(TIMER)
    def emit(
        self,
        elements: Any = beam.DoFn.StateParam(ELEMENTS),
        due: Any = beam.DoFn.StateParam(DUE),
    ) -> Any:
        if time.time() > due.read() - 0.5:
            yield from elements.read()
        elements.clear()
        due.clear()


def plain_state(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    keyed = numbers(pipeline) | beam.Map(lambda x: (x % 2, x))
    return keyed | beam.ParDo(CollectInState())


def plain_state_in_stream(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    keyed = stream(pipeline, setting) | beam.Map(lambda x: (x % 2, x))
    return keyed | beam.WindowInto(FixedWindows(1)) | beam.ParDo(CollectInState())


def plain_timer_in_stream(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    keyed = stream(pipeline, setting) | beam.Map(lambda x: (x % 2, x))
    return keyed | beam.ParDo(WaitInState())


def plain_side_input(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    zero = pipeline | "Zero" >> beam.Create([("zero", 0)])
    return numbers(pipeline) | beam.Map(
        lambda x, offsets: x + offsets["zero"], offsets=beam.pvalue.AsDict(zero)
    )


def plain_windows(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return (
        numbers(pipeline)
        | beam.Map(lambda x: TimestampedValue(x, x))
        | beam.WindowInto(FixedWindows(10))
        | beam.Map(lambda x: x)
    )


# Features


def keyed_ab(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    handler = KeyedModelHandler(
        [
            KeyModelMapping(["a"], linear_handler(setting.path("a.pickle"), 2)),
            KeyModelMapping(["b"], linear_handler(setting.path("b.pickle"), 3)),
        ]
    )
    return (
        numbers(pipeline)
        | beam.Map(lambda x: ("ab"[x % 2], to_vector(x)))
        | RunInference(handler)
        | beam.MapTuple(lambda key, result: [key, *to_number(result)])
    )


def pytorch(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    import torch

    path = setting.path("double.pt")
    torch.save({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([0.0])}, path)
    handler = PytorchModelHandlerTensor(
        state_dict_path=path,
        model_class=torch.nn.Linear,
        model_params={"in_features": 1, "out_features": 1},
    )
    return (
        numbers(pipeline)
        | beam.Map(lambda x: torch.tensor([float(x)]))
        | RunInference(handler)
        | beam.Map(to_number)
    )


N_KEYS = 6


def per_key_models(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    handler = KeyedModelHandler(
        [
            KeyModelMapping([key], linear_handler(setting.path(f"{key}.pickle"), key))
            for key in range(N_KEYS)
        ],
        max_models_per_worker_hint=2,
    )
    return (
        numbers(pipeline)
        | beam.Map(lambda x: (x % N_KEYS, to_vector(x)))
        | RunInference(handler)
        | beam.MapTuple(lambda key, result: [key, *to_number(result)])
    )


def dead_letters(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    results, dlq = (
        numbers(pipeline)
        | beam.Map(lambda x: x if x % 10 else f"bad {x}")
        | RunInference(multiply_handler(setting, 2)).with_exception_handling()
    )
    good = results | "Good" >> beam.Map(lambda result: [result.example, result.inference])
    bad = dlq.failed_inferences | "Bad" >> beam.MapTuple(lambda x, error: [x, error[1]])
    return (good, bad) | beam.Flatten()


def expected_dead_letters() -> list[Any]:
    return [
        [i, 2.0 * i] if i % 10 else [f"bad {i}", repr(ValueError(f"'bad {i}' is not a number"))]
        for i in range(N)
    ]


def refresh_by_side_input(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    handler = linear_handler(setting.path("old.pickle"), 2)
    save_linear_model(setting.path("new.pickle"), 3)
    update = ModelMetadata(setting.path("new.pickle"), "new")
    updates = pipeline | "Update" >> beam.Create([update])
    return (
        vectors(pipeline)
        | RunInference(handler, model_metadata_pcoll=updates)
        | beam.Map(lambda result: [*to_number(result), Path(result.model_id).stem])
    )


def publish(number: int, path: str) -> int:
    """Save a new model when the tenth element arrives, and wait for longer than workers take to notice it."""
    if number == 10:
        save_linear_model(path, 3)
        time.sleep(1)
    return number


def refresh_by_watched_pattern(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    handler = linear_handler(setting.path("2.pickle"), 2, max_batch_size=1)
    watched = RunInference(handler, watch_model_pattern=setting.path("?.pickle"), interval=0.1)
    return (
        stream(pipeline, setting)
        | beam.Map(publish, setting.path("3.pickle"))
        | beam.Map(to_vector)
        | watched
        | beam.Map(lambda result: [*to_number(result), Path(result.model_id).stem])
    )


def check_refresh(outcome: Outcome, setting: Setting) -> None:
    outcome.verify_success()
    assert outcome.output is not None, "no output was written"
    assert sorted(number for number, _, _ in outcome.output) == list(range(N))
    for number, inference, model in outcome.output:
        assert inference == number * int(model), f"{number} x {model} = {inference}"
    assert {model for _, _, model in outcome.output} == {"2", "3"}, "the model never changed"


class AddWindow(beam.DoFn):
    """Append the window and the timestamp to each element."""

    def process(
        self,
        element: Any,
        window: Any = beam.DoFn.WindowParam,
        timestamp: Any = beam.DoFn.TimestampParam,
    ) -> Any:
        yield [*element, float(window.start), float(window.end), float(timestamp)]


def in_windows(windows: Any, pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return (
        numbers(pipeline)
        | beam.Map(lambda x: TimestampedValue(to_vector(x), x))
        | beam.WindowInto(windows)
        | RunInference(linear_handler(setting.path("model.pickle"), 2))
        | beam.Map(to_number)
        | beam.ParDo(AddWindow())
    )


def expected_fixed_windows() -> list[Any]:
    return [[i, 2.0 * i, i // 10 * 10.0, i // 10 * 10.0 + 10, float(i)] for i in range(N)]


def expected_sliding_windows() -> list[Any]:
    return [
        [i, 2.0 * i, float(start), float(start) + 10, float(i)]
        for i in range(N)
        for start in (i // 5 * 5, i // 5 * 5 - 5)
    ]


def batches_across_bundles(
    source: Callable[..., beam.PCollection], pipeline: beam.Pipeline, setting: Setting
) -> beam.PCollection:
    handler = multiply_handler(
        setting, 2, min_batch_size=10, max_batch_size=10, max_batch_duration_secs=5
    )
    return (
        source(pipeline)
        | RunInference(handler)
        | beam.Map(lambda result: [result.example, result.inference])
    )


def check_batches(outcome: Outcome, setting: Setting) -> None:
    outcome.verify_equal(doubled())
    sizes = [len(json.loads(line)) for line in recorded(setting.path("factor.txt.batches"))]
    assert len(sizes) <= N // 3, f"{len(sizes)} batches of {min(sizes)} to {max(sizes)} elements"


def streaming(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return (
        stream(pipeline, setting)
        | beam.WindowInto(FixedWindows(1))
        | beam.Map(to_vector)
        | RunInference(linear_handler(setting.path("model.pickle"), 2))
        | beam.Map(to_number)
    )


def streaming_across_bundles(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return batches_across_bundles(partial(stream, setting=setting), pipeline, setting)


def side_input_arguments(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    arguments = pipeline | "Arguments" >> beam.Create([("offset", 100)])
    return (
        numbers(pipeline)
        | RunInference(multiply_handler(setting, 2), inference_args=beam.pvalue.AsDict(arguments))
        | beam.Map(lambda result: [result.example, result.inference])
    )


MAX_PADDED_SIZE = 64


def padding_budget(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    handler = multiply_handler(setting, 2, batch_length_fn=len, max_padded_size=MAX_PADDED_SIZE)
    return (
        numbers(pipeline)
        | beam.Map(lambda x: [0] * (x + 1))
        | RunInference(handler)
        | beam.Map(lambda result: [len(result.example), result.inference])
    )


def check_padding(outcome: Outcome, setting: Setting) -> None:
    outcome.verify_equal([[i, 2.0 * i] for i in range(1, N + 1)])
    for lengths in map(json.loads, recorded(setting.path("factor.txt.batches"))):
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= MAX_PADDED_SIZE, lengths


def shared_large_model(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return (
        numbers(pipeline)
        | RunInference(multiply_handler(setting, 2, large_model=True))
        | beam.Map(lambda result: [result.example, result.inference])
    )


def check_one_load(outcome: Outcome, setting: Setting) -> None:
    outcome.verify_equal(doubled())
    loads = recorded(setting.path("factor.txt.loads"))
    assert len(loads) == 1, f"{len(loads)} loads, in the processes {loads}"


def subprocess_model(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    # Each crash of a batch starts a new subprocess, so small batches find the element with fewer of them.
    handler = multiply_handler(setting, 2, max_batch_size=4)
    infer = RunInference(handler).with_exception_handling(use_subprocess=True, timeout=60)
    results, dlq = numbers(pipeline) | beam.Map(lambda x: "crash" if x == 31 else x) | infer
    good = results | "Good" >> beam.Map(lambda result: [result.example, result.inference])
    bad = dlq.failed_inferences | "Bad" >> beam.MapTuple(lambda x, error: [x, "failed"])
    return (good, bad) | beam.Flatten()


def expected_subprocess_model() -> list[Any]:
    return [[i, 2.0 * i] if i != 31 else ["crash", "failed"] for i in range(N)]


def remote_model(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    results, dlq = (
        numbers(pipeline)
        | beam.Map(lambda x: x if x % 10 else -x - 1)
        | RunInference(SquareEndpoint(setting.url)).with_exception_handling()
    )
    good = results | "Good" >> beam.Map(lambda result: [result.example, result.inference])
    bad = dlq.failed_inferences | "Bad" >> beam.MapTuple(lambda x, error: [x, "failed"])
    return (good, bad) | beam.Flatten()


def expected_remote_model() -> list[Any]:
    return [[i, i * i] if i % 10 else [-i - 1, "failed"] for i in range(N)]


def rows(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    import pandas as pd

    table = pd.DataFrame({"height": [1.0, 0.0, 2.0], "width": [0.0, 1.0, 3.0]})
    model = LinearRegression(fit_intercept=False).fit(table, 2 * table["height"] + table["width"])
    Path(setting.path("model.pickle")).write_bytes(pickle.dumps(model))
    handler = SklearnModelHandlerPandas(model_uri=setting.path("model.pickle"))
    return (
        numbers(pipeline)
        | beam.Map(lambda x: beam.Row(id=int(x), height=float(x), width=1.0)).with_output_types(
            beam.row_type.RowTypeConstraint.from_fields(
                [("id", int), ("height", float), ("width", float)]
            )
        )
        | RunInference(handler, output={"area": float}, keep=["id"])
        | beam.GroupBy("id").aggregate_field("area", sum, "area")
        | beam.Map(lambda row: [row.id, round(row.area, 6)])
    )


def plain_rows(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return (
        numbers(pipeline)
        | beam.Select(id=lambda x: int(x), half=lambda x: x / 2)
        | beam.GroupBy("id").aggregate_field("half", sum, "half")
        | beam.Map(lambda row: row.id)
    )


def metrics(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return dead_letters(pipeline, setting)


def check_metrics(outcome: Outcome, setting: Setting) -> None:
    outcome.verify_equal(expected_dead_letters())
    counters = outcome.read_counters()
    counts = {name: counters.get(name) for name in ("num_inferences", "failed_elements")}
    assert counts == {"num_inferences": N - N // 10, "failed_elements": N // 10}, counts


def plain_counter(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    counter = beam.metrics.Metrics.counter("control", "elements")
    return numbers(pipeline) | beam.Map(lambda x: counter.inc() or x)


def verify_counter(outcome: Outcome) -> None:
    count = outcome.read_counters().get("elements")
    assert count == N, f"the counter is {count}"


class LargeMachine(Multiply):
    def get_resource_hints(self) -> dict[str, str]:
        return {"min_ram": "1GB"}


def resource_hints(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    multiply_handler(setting, 2)
    return (
        numbers(pipeline)
        | RunInference(LargeMachine(setting.path("factor.txt")))
        | beam.Map(lambda result: [result.example, result.inference])
    )


def plain_hints(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    return numbers(pipeline) | beam.Map(lambda x: x).with_resource_hints(min_ram="1GB")


def threshold(pipeline: beam.Pipeline, setting: Setting) -> beam.PCollection:
    results, _ = (
        numbers(pipeline)
        | beam.Map(lambda x: x if x % 2 else f"bad {x}")
        | RunInference(multiply_handler(setting, 2)).with_exception_handling(threshold=0.2)
    )
    return results | beam.Map(lambda result: [result.example, result.inference])


def check_threshold(outcome: Outcome, setting: Setting) -> None:
    assert outcome.error is not None, "the pipeline did not fail"
    assert "above the threshold of 0.2" in outcome.error, outcome.error[-300:]


FEATURES = [
    Feature(
        "A/B test with keys",
        keyed_ab,
        lambda: [["ab"[i % 2], i, (2.0 + i % 2) * i] for i in range(N)],
        (plain_batch,),
    ),
    Feature("PyTorch model", pytorch, doubled, (plain_batch,)),
    Feature(
        "Models per key with eviction",
        per_key_models,
        lambda: [[i % N_KEYS, i, float(i % N_KEYS * i)] for i in range(N)],
        (plain_batch,),
    ),
    Feature("Dead letters", dead_letters, expected_dead_letters, (plain_tags,)),
    Feature("Dead letters above the threshold", threshold, list, (plain_tags,), check_threshold),
    Feature(
        "Model refresh by side input",
        refresh_by_side_input,
        lambda: [[i, 3.0 * i, "new"] for i in range(N)],
        (plain_side_input,),
    ),
    Feature(
        "Arguments from a side input",
        side_input_arguments,
        lambda: [[i, 2.0 * i + 100] for i in range(N)],
        (plain_side_input,),
    ),
    Feature(
        "Fixed windows and timestamps",
        partial(in_windows, FixedWindows(10)),
        expected_fixed_windows,
        (plain_windows,),
    ),
    Feature(
        "Sliding windows",
        partial(in_windows, SlidingWindows(10, 5)),
        expected_sliding_windows,
        (plain_windows,),
    ),
    Feature(
        "Batches across bundles",
        partial(batches_across_bundles, numbers),
        doubled,
        (plain_state,),
        check_batches,
    ),
    Feature("Maximum padded size", padding_budget, list, (plain_batch,), check_padding),
    Feature("Large model loaded once", shared_large_model, list, (plain_batch,), check_one_load),
    Feature("Model in a subprocess", subprocess_model, expected_subprocess_model, (plain_tags,)),
    Feature("Remote model with failures", remote_model, expected_remote_model, (plain_tags,)),
    Feature(
        "Rows with a schema", rows, lambda: [[i, 2.0 * i + 1] for i in range(N)], (plain_rows,)
    ),
    Feature("Metrics", metrics, list, (plain_counter,), check_metrics, verify_counter),
    Feature("Resource hints", resource_hints, doubled, (plain_hints,)),
    Feature("Stream", streaming, doubled, (plain_stream,)),
    Feature(
        "Stream with batches across bundles",
        streaming_across_bundles,
        doubled,
        (plain_state_in_stream, plain_timer_in_stream, plain_stream),
        check_batches,
    ),
    Feature(
        "Stream with model refresh by file pattern",
        refresh_by_watched_pattern,
        list,
        (plain_stream,),
        check_refresh,
    ),
]
