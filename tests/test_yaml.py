"""YAML pipelines use our transform with a provider, and our handlers with Beam's own transform."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path

import apache_beam as beam
import pandas as pd
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from sklearn.linear_model import LinearRegression, LogisticRegression

from common import RUNNER

EXAMPLE = Path(__file__).parents[1] / "examples" / "table_regression.yaml"
FRAME = pd.DataFrame({"age": [1.0, 2.0, 3.0, 4.0], "bmi": [2.0, 1.0, 4.0, 3.0]})
PROVIDERS = [
    {
        "type": "python",
        "config": {},
        "transforms": {"RunInference": "runinference.yaml.RunInference"},
    }
]
#: Beam YAML imports them for transforms that these tests don't use, which takes several seconds.
SLOW = ["sentence_transformers", "tensorflow"]


@pytest.fixture(scope="module", autouse=True)
def beam_yaml():
    absent = [name for name in SLOW if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        importlib.import_module("runinference.yaml")
        importlib.import_module("apache_beam.yaml.yaml_provider").standard_providers()
        return importlib.import_module("apache_beam.yaml.yaml_transform")
    finally:
        for name in absent:
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FRAME.assign(id=["a", "b", "c", "d"]).to_csv("patients.csv", index=False)
    model = LinearRegression().fit(FRAME, 2 * FRAME["age"] + FRAME["bmi"])
    Path("model.pickle").write_bytes(pickle.dumps(model))
    labels = LogisticRegression().fit(FRAME, ["young", "old", "old", "old"])
    Path("labels.pickle").write_bytes(pickle.dumps(labels))
    return tmp_path


def infer(model="model.pickle", **config):
    handler = {"type": "SklearnModelHandlerPandas", "config": {"model_uri": model}}
    return {"type": "RunInference", "config": {"model_handler": handler, **config}}


@pytest.fixture
def run_pipeline(beam_yaml):
    def run(spec, *flags):
        options = PipelineOptions(list(flags), pickle_library="cloudpickle")
        with beam.Pipeline(RUNNER, options=options) as pipeline:
            return beam_yaml.expand_pipeline(pipeline, yaml.safe_dump(spec))

    return run


def chain(*transforms, providers=PROVIDERS):
    read = {"type": "ReadFromCsv", "config": {"path": "patients.csv"}}
    write = {"type": "WriteToJson", "config": {"path": "out.json"}}
    return {
        "pipeline": {"type": "chain", "transforms": [read, *transforms, write]},
        "providers": providers,
    }


def read_json(prefix):
    lines = [line for path in Path().glob(f"{prefix}-*") for line in path.read_text().splitlines()]
    return [*map(json.loads, lines)]


def test_a_provider_adds_typed_predictions_to_the_rows_of_a_csv_file(folder, run_pipeline):
    round_progress = {
        "type": "MapToFields",
        "config": {
            "language": "python",
            "fields": {"id": "id", "progress": "round(progress, 2)"},
        },
    }
    infer_step = infer(columns=["age", "bmi"], keep=["id"], output={"progress": "number"})
    run_pipeline(chain(infer_step, round_progress))
    assert sorted(map(tuple, (row.values() for row in read_json("out.json")))) == [
        ("a", 4.0),
        ("b", 5.0),
        ("c", 10.0),
        ("d", 11.0),
    ]


def test_results_are_stored_in_a_cache(folder, run_pipeline):
    for _ in range(2):
        run_pipeline(chain(infer(output="progress", cache={"location": "results"})))
        assert sorted(round(row["progress"]) for row in read_json("out.json")) == [4, 5, 10, 11]
    assert Path("results", "cache.db").exists()


def test_failed_rows_are_an_output_with_the_message(folder, run_pipeline):
    rows = [{"age": 2.0, "bmi": 1.0}, {"age": 2.0, "bmi": None}]
    steps = [
        {"type": "Create", "config": {"elements": rows}},
        {**infer(error_handling={"output": "errors"}), "name": "Predict", "input": "Create"},
        {"type": "WriteToJson", "name": "Good", "input": "Predict", "config": {"path": "good"}},
        {
            "type": "WriteToJson",
            "name": "Bad",
            "input": "Predict.errors",
            "config": {"path": "bad"},
        },
    ]
    run_pipeline({"pipeline": {"transforms": steps}, "providers": PROVIDERS})
    (good,) = read_json("good")
    assert good == {"age": 2.0, "bmi": 1.0, "prediction": pytest.approx(5)}
    (bad,) = read_json("bad")
    assert bad.keys() == {"element", "msg", "stack"}
    assert "Input X contains NaN" in bad["msg"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"colums": ["age"]}, "Did you mean 'columns'"),
        ({"columns": ["age", "bmj"]}, "no feature 'bmj' .*Did you mean 'bmi'"),
        ({"keep": ["idd"]}, "no column 'idd' .*Did you mean 'id'"),
        ({"output": {"progress": "float"}}, "use one of boolean"),
        ({"cache": {"max_byte": 1}}, "Did you mean 'cache.max_bytes'"),
        ({"cache": "results"}, "cache must be a dictionary"),
        ({"error_handling": {"outputs": "errors"}}, "Did you mean 'output'|Missing output"),
        ({"model_handler": {"type": "SklearnModelHandlerPanda"}}, "SklearnModelHandlerPandas"),
        ({"model_handler": {"config": {}}}, "model_handler has no type"),
        (
            {"model_handler": {"typ": "x", "config": {}}},
            "Did you mean 'model_handler.type'",
        ),
    ],
)
def test_wrong_options_fail_when_the_pipeline_is_built(folder, run_pipeline, config, message):
    with pytest.raises(ValueError, match=message):
        run_pipeline(chain({**infer(), "config": {**infer()["config"], **config}}))


def beams_own(**config):
    model = {"model_uri": "labels.pickle", **config}
    handler = {"type": "SklearnModelHandlerPandas", "config": model}
    return {
        "type": "RunInference",
        "config": {"model_handler": handler, "inference_tag": "label"},
    }


def test_handlers_are_registered_for_beams_own_transform(folder, run_pipeline):
    run_pipeline(chain(beams_own(), providers=[]), "--yaml_experimental_features=ML")
    assert {row["id"]: row["label"] for row in read_json("out.json")} == dict.fromkeys(
        "abcd", "old"
    )


def test_beams_own_transform_takes_functions_as_for_its_own_handlers(folder, run_pipeline):
    step = beams_own(
        preprocess={
            "callable": "lambda row: __import__('pandas').DataFrame([row._asdict()])[['age', 'bmi']]"
        },
        postprocess={"callable": "lambda result: str(result.inference)"},
    )
    run_pipeline(chain(step, providers=[]), "--yaml_experimental_features=ML")
    assert {row["label"] for row in read_json("out.json")} == {"old"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"columns": ["age", "bmj"]}, "no feature 'bmj' .*Did you mean 'bmi'"),
        ({"max_batchsize": 2}, "Did you mean 'max_batch_size'"),
        ({"postprocess": {"callable": "str"}}, "postprocess is given without preprocess"),
        ({"preprocess": {"callable": "str"}, "columns": ["age"]}, "columns and output_type"),
    ],
)
def test_wrong_options_fail_in_beams_own_transform(folder, run_pipeline, config, message):
    with pytest.raises(ValueError, match=message):
        run_pipeline(chain(beams_own(**config), providers=[]), "--yaml_experimental_features=ML")


def test_partitions_of_rows_have_models_of_their_own(folder, run_pipeline):
    half = LinearRegression().fit(FRAME, FRAME["age"] / 2)
    Path("half.pickle").write_bytes(pickle.dumps(half))
    by_kind = {"by": "'half' if id in 'ab' else 'other'", "outputs": ["half", "other"]}
    steps = [
        {"type": "ReadFromCsv", "config": {"path": "patients.csv"}},
        {
            "type": "Partition",
            "input": "ReadFromCsv",
            "config": {**by_kind, "language": "python"},
        },
        {**infer("half.pickle", keep=["id"]), "name": "Half", "input": "Partition.half"},
        {**infer(keep=["id"]), "name": "Other", "input": "Partition.other"},
        {"type": "Flatten", "input": ["Half", "Other"]},
        {"type": "WriteToJson", "input": "Flatten", "config": {"path": "out.json"}},
    ]
    run_pipeline({"pipeline": {"transforms": steps}, "providers": PROVIDERS})
    found = {row["id"]: row["prediction"] for row in read_json("out.json")}
    assert found == pytest.approx({"a": 0.5, "b": 1.0, "c": 10.0, "d": 11.0})


def test_the_example_writes_predictions_and_failed_rows(folder, run_pipeline):
    spec = yaml.safe_load(EXAMPLE.read_text())
    names = spec["pipeline"]["transforms"][1]["config"]["columns"]
    table = pd.DataFrame([[float(n + k) for k in range(len(names))] for n in range(12)])
    table.columns = names
    model = LinearRegression().fit(table, table["bmi"])
    (folder / "model.pickle").write_bytes(pickle.dumps(model))
    table.loc[3, "bmi"] = None
    table.to_csv("patients.csv", index_label="patient")
    run_pipeline(spec)
    found = {row["patient"]: row["progress"] for row in read_json("predictions.json")}
    assert found == {n: pytest.approx(n + 2) for n in range(12) if n != 3}
    assert len(read_json("errors.json")) == 1


def test_the_page_shows_the_example():
    page = EXAMPLE.parents[1] / "docs" / "beam-yaml-and-other-sdks.md"
    assert EXAMPLE.read_text().partition("\n\n")[2].strip() in page.read_text()
