"""The other engines. Each class starts one, runs jobs, and stops it. An engine is imported when it starts."""

import functools
import logging
import os
import shutil
import sys
from abc import ABC, abstractmethod
from importlib.util import find_spec

import numpy as np

from benchmarks.harness import Outcome
from benchmarks.peers.models import PredictBatch

N_CPUS = os.cpu_count() or 1


class Engine(ABC):
    """An engine. Creating an instance starts it."""

    name: str
    package: str

    @classmethod
    def find_missing(cls) -> str | None:
        """Return what has to be installed to use the engine, or None."""
        return None if find_spec(cls.package) else cls.package

    @abstractmethod
    def run(self, job) -> Outcome:
        """Compute a job and count its results."""

    def find_problem(self, job) -> str | None:
        """Return why the engine can't run a job, or None."""
        return None

    @abstractmethod
    def stop(self) -> None:
        """Stop the processes of the engine."""


class RayData(Engine):
    """Ray Data with one actor per CPU core."""

    name, package = "Ray Data", "ray"

    def __init__(self):
        import ray

        # One slot more than actors. Without it, tasks that read files would wait for the actors forever.
        ray.init(
            num_cpus=N_CPUS + 1,
            logging_level="ERROR",
            log_to_driver=False,
            include_dashboard=False,
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def run(self, job):
        import ray

        outcome = Outcome()
        results = ray.data.read_parquet(job.folder).map_batches(
            PredictBatch,
            fn_constructor_args=(job.load, job.model_path),
            batch_size=job.batch_size,
            compute=ray.data.ActorPoolStrategy(size=N_CPUS),
        )
        for batch in results.iter_batches(batch_size=None, batch_format="numpy"):
            outcome.add_batch(batch["number"], batch["value"])
        return outcome

    def stop(self):
        import ray

        ray.shutdown()


class Spark(Engine):
    """Spark in local mode with `predict_batch_udf`."""

    name, package = "Spark", "pyspark"

    @classmethod
    def find_missing(cls):
        has_java = shutil.which("java") or "JAVA_HOME" in os.environ
        return super().find_missing() or (None if has_java else "Java")

    def __init__(self):
        from pyspark.sql import SparkSession

        os.environ["PYSPARK_PYTHON"] = sys.executable  # by default, the first python3 of the path
        builder = SparkSession.builder.master(f"local[{N_CPUS}]")
        for option in ("spark.ui.enabled", "spark.ui.showConsoleProgress"):
            builder = builder.config(option, False)
        self._spark = builder.config("spark.driver.memory", "4g").getOrCreate()
        self._spark.sparkContext.setLogLevel("OFF")

    def find_problem(self, job):
        return None if job.shape else "predict_batch_udf needs arrays of one shape"

    def run(self, job):
        from pyspark.ml.functions import predict_batch_udf
        from pyspark.sql import functions
        from pyspark.sql.types import DoubleType

        predict = predict_batch_udf(
            functools.partial(job.load, job.model_path),
            return_type=DoubleType(),
            batch_size=job.batch_size,
            input_tensor_shapes=[[int(np.prod(job.shape))]],
        )
        frame = self._spark.read.parquet(job.folder).select(
            "number", predict("features").alias("value")
        )
        products = functions.sum(frame.number * frame.value)
        row = frame.agg(functions.count("value"), functions.sum("number"), products).first()
        return Outcome(*row)

    def stop(self):
        self._spark.stop()


class Daft(Engine):
    """Daft with a user-defined function of a class."""

    name, package = "Daft", "daft"

    def __init__(self):
        import daft

        os.environ["DAFT_PROGRESS_BAR"] = "0"
        daft.set_runner_native()  # Daft would run on Ray, which is already started

    def run(self, job):
        import daft

        @daft.udf(
            return_dtype=daft.DataType.float64(), batch_size=job.batch_size, concurrency=N_CPUS
        )
        class PredictSeries:
            def __init__(self, load, path):
                self._predict = load(path)

            def __call__(self, features):
                return self._predict(list(features.to_arrow().to_numpy(zero_copy_only=False)))

        predict = PredictSeries.with_init_args(job.load, job.model_path)
        frame = daft.read_parquet(f"{job.folder}/*.parquet")
        frame = frame.select("number", predict(daft.col("features")).alias("value"))
        outcome = Outcome()
        for batch in frame.to_arrow_iter():
            outcome.add_batch(batch["number"].to_numpy(), batch["value"].to_numpy())
        return outcome

    def stop(self):
        """Do nothing, because the workers of Daft end with each job."""


ENGINES = (RayData, Spark, Daft)
