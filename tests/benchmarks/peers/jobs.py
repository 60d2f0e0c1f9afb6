"""The jobs of the comparison, with their elements as Parquet files."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import Outcome
from benchmarks.peers.models import Predict, load_classifier, load_images, load_rows

N_FILES = 8


@dataclass(frozen=True)
class Job:
    """The same elements and model for all contenders.

    Attributes:
        workload: The code of the workload, such as W1.
        folder: The directory of the Parquet files. Their columns are `number` and `features`, a list of numbers.
        load: Loads the model from `model_path` in a worker process and returns its `Predict` function.
        model_path: The path of the model.
        batch_size: The number of elements per batch.
        shape: The shape of the features of an element. It is empty if their lengths differ.
        n: The number of elements.
        runs: Contenders that need no other engine, among them `limit`, the loop.
        check: Raises an error if the outcome of a contender is incomplete or wrong.
    """

    workload: str
    folder: str
    load: Callable[[str], Predict]
    model_path: str
    batch_size: int
    shape: tuple[int, ...]
    n: int
    runs: dict[str, Callable[[], Outcome]]
    check: Callable[[str, Outcome], None]


def write_parquet(numbers, features):
    """Write one number and one list of features per element to several files, and return their directory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(tempfile.mkdtemp(prefix="benchmark-peers-"))
    for index, chosen in enumerate(np.array_split(np.arange(len(features)), N_FILES)):
        columns = {
            "number": np.asarray(numbers, np.float64)[chosen],
            "features": [features[at] for at in chosen],
        }
        pq.write_table(pa.table(columns), folder / f"{index}.parquet")
    return str(folder)


def row_job(scale):
    from benchmarks import w1_rows as w1

    # A million rows, because the engines take seconds to start a job.
    case = next(w1.cases(5 * scale))
    model, path = w1.train_model()
    rows = w1.rows(case.n)
    folder = write_parquet([row.item(0) for row in rows], rows)
    return Job(
        "W1",
        folder,
        load_rows,
        path,
        1_024,
        (w1.FEATURES,),
        case.n,
        {name: case.runs[name] for name in ("limit", "ours")},
        functools.partial(check, *w1.expected(model, case.n), case.check),
    )


def image_job(scale):
    from benchmarks import w2_images as w2

    case = next(w2.cases(scale))
    model, path = w2.save_model()
    images = w2.images(case.n)
    numbers = [*map(w2.number, images)]
    return Job(
        "W2",
        write_parquet(numbers, [image.flatten().numpy() for image in images]),
        load_images,
        path,
        16,
        w2.SHAPE,
        case.n,
        {name: case.runs[name] for name in ("limit", "ours")},
        functools.partial(check, numbers, w2.expected(model, case.n)[:, 0], case.check),
    )


def sequence_job(scale):
    from benchmarks import w3_token_sequences as w3

    case = next(w3.cases(scale))
    model, path = w3.save_model()
    sequences = w3.sequences(case.n)
    numbers = [*map(w3.get_number, sequences)]
    return Job(
        "W3",
        write_parquet(numbers, [each["input_ids"].numpy() for each in sequences]),
        functools.partial(load_classifier, w3.CONFIG),
        path,
        32,
        (),
        case.n,
        {name: case.runs[name] for name in ("limit", "ours")},
        functools.partial(check, numbers, w3.expected(model, case.n)[:, 0], case.check),
    )


def check(numbers, values, check_case, contender, outcome):
    """Check the count and the checksums. The contenders of the workload also have a sample."""
    if contender in ("limit", "ours"):
        return check_case(contender, outcome)
    outcome.check(numbers, values, tolerance=1e-5)
