"""Startup: CPU time until a new process has imported a handler, and until its first result, with its peak memory.

Frameworks are imported late, because the tests import this module.
"""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Case, Outcome, run_program
from benchmarks.w1_rows import FEATURES, rows, train_model

IMPORT_BEAM = "CPU seconds to import Beam"
IMPORT = "CPU seconds until import"
FIRST_RESULT = "CPU seconds until first result"
PEAK = "MB of peak memory"


@dataclass(frozen=True)
class Program:
    """A program that calls a model with one element.

    Attributes:
        framework: The statement that imports the framework.
        loop: The statements that load the model and call it without a pipeline.
        module: The module of the handler, which has the same name in both libraries.
        handler: An expression that creates the handler.
        element: An expression that creates the element.
        not_in_beam: Why Beam's handler is not measured, or an empty string.
        rounds: The number of rounds. Frameworks that take long to import run one.
    """

    framework: str
    loop: str
    module: str
    handler: str
    element: str = f"np.zeros({FEATURES}, np.float32)"
    not_in_beam: str = ""
    rounds: int = 2


#: Both programs print their CPU time in milliseconds.
LOOP = """
import time, numpy as np
{framework}
print(round(1e3 * time.process_time()))
element = {element}
{loop}
print(round(1e3 * time.process_time()))
"""

PIPELINE = """
import time, numpy as np
print(round(1e3 * time.process_time()))
import apache_beam as beam
print(round(1e3 * time.process_time()))
from {package}.base import RunInference
from {package}.{module} import {handler_class}
print(round(1e3 * time.process_time()))
{framework}
from apache_beam.runners.worker.statesampler import StateSampler
StateSampler.__init__.__defaults__ = (1,)
with beam.Pipeline("FnApiRunner") as pipeline:
    results = pipeline | beam.Create([{element}]) | RunInference({handler})
    results | beam.Map(lambda result: print(round(1e3 * time.process_time())))
"""


def cases(scale):
    for variant, program in make_programs():
        fields = {**vars(program), "handler_class": program.handler.partition("(")[0]}
        programs = {
            "limit": LOOP.format(**fields),
            "ours": PIPELINE.format(package="runinference", **fields),
            "Beam": PIPELINE.format(package="apache_beam.ml.inference", **fields),
        }
        if program.not_in_beam:
            del programs["Beam"]
        yield Case(
            workload="start",
            variant=variant,
            n=1,
            runs={name: functools.partial(run, text) for name, text in programs.items()},
            check=check,
            goals={},
            max_rounds=program.rounds,
            not_measured={"Beam": program.not_in_beam} if program.not_in_beam else {},
            warm_up=False,
        )


def make_programs():
    """Yield the name of a framework and its program, after saving the model."""
    import torch
    from skl2onnx import to_onnx

    from benchmarks.w9_trees import train_model as train_trees
    from benchmarks.w10_texts import save_model as save_text_model

    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    model, path = train_model()
    yield (
        "scikit-learn",
        Program(
            "import pickle, sklearn.linear_model",
            f"pickle.load(open({path!r}, 'rb')).predict([element])",
            "sklearn_inference",
            f"SklearnModelHandlerNumpy({path!r})",
        ),
    )
    path = str(folder / "model.pt")
    params = {"in_features": FEATURES, "out_features": 1}
    torch.save(torch.nn.Linear(**params).state_dict(), path)
    yield (
        "PyTorch",
        Program(
            "import torch",
            f"model = torch.nn.Linear(**{params}).eval()\n"
            f"model.load_state_dict(torch.load({path!r}))\n"
            "with torch.inference_mode(): model(element[None])",
            "pytorch_inference",
            f"PytorchModelHandlerTensor({path!r}, torch.nn.Linear, {params})",
            element=f"torch.zeros({FEATURES})",
        ),
    )
    path = str(folder / "model.onnx")
    Path(path).write_bytes(to_onnx(model, rows(1)[0][None]).SerializeToString())
    yield (
        "ONNX",
        Program(
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({path!r}, providers=['CPUExecutionProvider'])\n"
            "session.run(None, {session.get_inputs()[0].name: element[None]})",
            "onnx_inference",
            f"OnnxModelHandlerNumpy({path!r}, providers=['CPUExecutionProvider'])",
        ),
    )
    _, path = train_trees()
    yield (
        "XGBoost",
        Program(
            "import xgboost",
            f"model = xgboost.XGBClassifier(n_jobs=1)\nmodel.load_model({path!r})\n"
            "model.predict(element[None])",
            "xgboost_inference",
            f"XGBoostModelHandlerNumpy(xgboost.XGBClassifier, {path!r})",
            not_in_beam="its module requires datatable, which is unmaintained",
        ),
    )
    path = str(folder / "model.keras")
    run_program(
        "import keras\n"
        f"model = keras.Sequential([keras.Input(({FEATURES},)), keras.layers.Dense(1)])\n"
        f"model.save({path!r})"
    )
    yield (
        "TensorFlow",
        Program(
            "import tensorflow as tf",
            f"tf.keras.models.load_model({path!r}).predict_on_batch(element[None])",
            "tensorflow_inference",
            f"TFModelHandlerNumpy({path!r})",
            not_in_beam="its module requires tensorflow_hub",
            rounds=1,
        ),
    )
    path = save_text_model()
    yield (
        "Hugging Face",
        Program(
            "import transformers",
            f"transformers.pipeline('text-classification', {path!r}, device='cpu')([element])",
            "huggingface_inference",
            f"HuggingFacePipelineModelHandler('text-classification', {path!r}, device='CPU')",
            element="'a good row'",
            not_in_beam="its module requires Transformers 4",
            rounds=1,
        ),
    )


def run(program):
    """Run a program in a new process."""
    *times, peak = run_program(program)
    *before_imports, imported, first_result = (time / 1e3 for time in times)
    metrics = {IMPORT: imported, FIRST_RESULT: first_result, PEAK: peak / 1e6}
    if before_imports:
        start, with_beam = before_imports
        metrics[IMPORT_BEAM] = with_beam - start
    return Outcome(1, metrics=metrics)


def check(contender, outcome):
    assert outcome.n == 1
