"""Models load from a real S3-compatible server: every format, many workers at once, and while requests fail.

`make test-object-store` builds the server and runs these tests.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from pathlib import Path

import apache_beam as beam
import boto3
import joblib
import numpy as np
import pytest
import torch
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from object_store import server as s3
from runinference import RunInference
from runinference.errors import ModelLoadError, ModelNotFoundError
from runinference.pytorch_inference import PytorchModelHandlerTensor
from runinference.sklearn_inference import ModelFileType, SklearnModelHandlerNumpy

ROWS, LABELS = load_iris(return_X_y=True)
ROWS = ROWS.astype("float32")
BUCKET = "models"
WEIGHTS = f"s3://{BUCKET}/weights.pt"
N_WORKERS = 4
N_WEIGHTS = 5_000_000  # 20 MB: more than one buffer of Beam's file system


@pytest.fixture(scope="session")
def proxy(tmp_path_factory):
    s3.install()
    folder = tmp_path_factory.mktemp("buckets")
    (folder / BUCKET).mkdir()
    with s3.start_server(folder) as port, s3.start_proxy(port) as proxy:
        yield proxy


@pytest.fixture
def store(proxy, monkeypatch):
    """The proxy, as the S3 endpoint of the pipeline options, and an environment without credentials."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    proxy.reset()
    FileSystems.set_options(PipelineOptions(options_of(proxy)))
    return proxy


def options_of(proxy, secret=s3.SECRET_KEY):
    return [
        f"--s3_endpoint_url=http://127.0.0.1:{proxy.server_port}",
        f"--s3_access_key_id={s3.ACCESS_KEY}",
        f"--s3_secret_access_key={secret}",
        f"--s3_region_name={s3.REGION}",
    ]


def upload(proxy, path, content):
    """Write an object directly to the server."""
    bucket, _, key = path.removeprefix("s3://").partition("/")
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{proxy.server_to_ask}",
        aws_access_key_id=s3.ACCESS_KEY,
        aws_secret_access_key=s3.SECRET_KEY,
        region_name=s3.REGION,
    )
    client.put_object(Bucket=bucket, Key=key, Body=content)


def upload_tree(proxy, path, name):
    """Write a file or a folder to the server, and return its path there."""
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        relative = "" if path.is_file() else f"/{file.relative_to(path).as_posix()}"
        upload(proxy, f"s3://{BUCKET}/{name}{relative}", file.read_bytes())
    return f"s3://{BUCKET}/{name}"


def save_pickle(path):
    path.write_bytes(pickle.dumps(LogisticRegression(max_iter=500).fit(ROWS, LABELS)))
    return SklearnModelHandlerNumpy


def save_joblib_gz(path):
    joblib.dump(LogisticRegression(max_iter=500).fit(ROWS, LABELS), path)
    return lambda uri: SklearnModelHandlerNumpy(uri, model_file_type=ModelFileType.JOBLIB)


def save_state_dict(path):
    torch.save(torch.nn.Linear(4, 2).state_dict(), path)
    params = {"in_features": 4, "out_features": 2}
    return lambda uri: PytorchModelHandlerTensor(uri, torch.nn.Linear, params)


def save_safetensors(path):
    from safetensors.torch import save_file

    save_file(torch.nn.Linear(4, 2).state_dict(), path)
    params = {"in_features": 4, "out_features": 2}
    return lambda uri: PytorchModelHandlerTensor(uri, torch.nn.Linear, params)


def save_torch_script(path):
    torch.jit.script(torch.nn.Linear(4, 2)).save(path)
    return lambda uri: PytorchModelHandlerTensor(torch_script_model_path=uri)


def save_onnx(path):
    from skl2onnx import to_onnx

    from runinference.onnx_inference import OnnxModelHandlerNumpy

    model = LogisticRegression(max_iter=500).fit(ROWS, LABELS)
    path.write_bytes(to_onnx(model, ROWS[:1], options={"zipmap": False}).SerializeToString())
    return OnnxModelHandlerNumpy


def save_xgboost(path):
    import xgboost

    from runinference.xgboost_inference import XGBoostModelHandlerNumpy

    xgboost.XGBClassifier(n_estimators=2).fit(ROWS, LABELS).save_model(path)
    return lambda uri: XGBoostModelHandlerNumpy(xgboost.XGBClassifier, uri)


def save_lightgbm(path):
    import lightgbm

    from runinference.lightgbm_inference import LightGBMModelHandlerNumpy

    model = lightgbm.train({"verbose": -1}, lightgbm.Dataset(ROWS, LABELS), 2)
    model.save_model(path)
    return LightGBMModelHandlerNumpy


def build_keras():
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


def save_keras(path):
    from runinference.tensorflow_inference import TFModelHandlerNumpy

    build_keras().save(path)
    return TFModelHandlerNumpy


def save_keras_weights(path):
    from runinference.tensorflow_inference import ModelType, TFModelHandlerNumpy

    build_keras().save_weights(path)
    return lambda uri: TFModelHandlerNumpy(uri, ModelType.SAVED_WEIGHTS, build_keras)


def save_saved_model(path):
    from runinference.tensorflow_inference import TFModelHandlerNumpy

    build_keras().export(path, verbose=False)
    return TFModelHandlerNumpy


def save_mlflow(path):
    import mlflow.sklearn

    from runinference.mlflow_inference import MLflowModelHandler

    model = LogisticRegression(max_iter=500).fit(ROWS, LABELS)
    mlflow.sklearn.save_model(model, path, serialization_format="cloudpickle")
    return MLflowModelHandler


FORMATS = {
    "model.pickle": save_pickle,
    "model.joblib.gz": save_joblib_gz,
    "weights.pt": save_state_dict,
    "weights.safetensors": save_safetensors,
    "script.pt": save_torch_script,
    "model.onnx": save_onnx,
    "model.json": save_xgboost,
    "model.txt": save_lightgbm,
    "model.keras": save_keras,
    "model.weights.h5": save_keras_weights,
    "saved_model": save_saved_model,
    "mlflow_model": save_mlflow,
}


def predict(handler):
    tensors = isinstance(handler, PytorchModelHandlerTensor)
    rows = [torch.from_numpy(row) if tensors else row for row in ROWS[:3]]
    return [np.asarray(result.inference).tolist() for result in handler.predict(rows)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_loads_as_from_the_local_disk(store, tmp_path, name):
    make_handler = FORMATS[name](tmp_path / name)
    uri = upload_tree(store, tmp_path / name, name)
    store.faults += [cut, slow_down]
    assert predict(make_handler(uri)) == predict(make_handler(str(tmp_path / name)))
    assert not store.faults


def test_a_folder_of_transformers_loads_as_from_the_local_disk(store, tmp_path):
    from transformers import BertModel

    from runinference.huggingface_inference import HuggingFaceModelHandlerEmbedding
    from tiny_transformers import TEXTS, bert, saved

    local = saved(tmp_path / "bert", BertModel(bert()))
    uri = upload_tree(store, tmp_path / "bert", "bert")
    store.faults += [cut, slow_down]
    found, expected = (HuggingFaceModelHandlerEmbedding(x).predict(TEXTS) for x in (uri, local))
    assert [x.inference.tolist() for x in found] == [x.inference.tolist() for x in expected]
    assert not store.faults
    assert store.count("GET", "model.safetensors") == 1


def cut(handler, response):
    handler.send(response, len(response.body) // 2)


def slow_down(handler, response):
    handler.send_slow_down()


class Constant(torch.nn.Module):
    """A module whose output is the smallest and the largest of its many weights."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(N_WEIGHTS))

    def forward(self, batch):
        return torch.stack([self.weights.min(), self.weights.max()]).expand(len(batch), 2)


def dump_weights(value, path):
    torch.save({"weights": torch.full((N_WEIGHTS,), float(value))}, path)
    return path.read_bytes()


def load_values():
    """Return the smallest and the largest weight that are loaded."""
    [result] = PytorchModelHandlerTensor(WEIGHTS, Constant, {}).predict([torch.zeros(1)])
    return result.inference.tolist()


def test_a_large_file_is_complete_after_many_closed_connections(store, tmp_path):
    upload(store, WEIGHTS, dump_weights(1, tmp_path / "1.pt"))
    store.faults += [cut] * 4
    assert load_values() == [1, 1]
    assert not store.faults


def test_a_file_that_is_replaced_while_it_is_downloaded_is_never_a_mix(store, tmp_path):
    """Beam's file system continues with the new file after a closed connection."""
    upload(store, WEIGHTS, dump_weights(1, tmp_path / "1.pt"))
    new = dump_weights(2, tmp_path / "2.pt")

    def replace_and_cut(handler, response):
        upload(store, WEIGHTS, new)
        cut(handler, response)

    store.faults.append(replace_and_cut)
    assert load_values() == [2, 2]


def test_a_folder_that_is_replaced_while_it_is_downloaded_is_never_a_mix(store, tmp_path):
    from runinference.download import download_folder

    for name in "abc":
        upload(store, f"s3://{BUCKET}/folder/{name}", b"old")

    def replace(handler, response):
        for name in "abc":
            upload(store, f"s3://{BUCKET}/folder/{name}", b"new")
        handler.send(response)

    store.faults += [lambda handler, response: handler.send(response), replace]
    folder = Path(download_folder(f"s3://{BUCKET}/folder"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == dict.fromkeys(
        "abc", b"new"
    )


def test_a_missing_object_or_bucket_is_an_error_that_names_it(store):
    upload(store, f"s3://{BUCKET}/iris.pickle", b"")
    with pytest.raises(ModelNotFoundError, match="Did you mean 's3://models/iris.pickle'"):
        SklearnModelHandlerNumpy(f"s3://{BUCKET}/iris.pickl").load_model()
    with pytest.raises(ModelNotFoundError, match="There is no file 's3://no-bucket/iris.pickle'"):
        SklearnModelHandlerNumpy("s3://no-bucket/iris.pickle").load_model()


def test_wrong_credentials_are_an_error_that_says_so(store):
    FileSystems.set_options(PipelineOptions(options_of(store, secret="wrong")))
    with pytest.raises(ModelLoadError, match="403.*To fix this.*credentials"):
        SklearnModelHandlerNumpy(f"s3://{BUCKET}/iris.pickle").load_model()


def test_missing_credentials_and_an_outage_are_errors_after_a_bounded_time(store, monkeypatch):
    """Beam retries for up to eleven minutes. The waits are counted, and skipped."""
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    FileSystems.set_options(PipelineOptions(options_of(store)[:1]))
    with pytest.raises(ModelLoadError, match="Unable to locate credentials"):
        SklearnModelHandlerNumpy(WEIGHTS).load_model()
    FileSystems.set_options(PipelineOptions(options_of(store)))
    store.outage = True
    with pytest.raises(ModelLoadError, match="503.*To fix this"):
        SklearnModelHandlerNumpy(WEIGHTS).load_model()
    assert sum(waits) < 2 * 11 * 60
    assert len(store.requests) < 50


@pytest.mark.parametrize("large_model", [False, True])
def test_worker_processes_that_start_at_once_each_have_the_whole_model(
    store, tmp_path, large_model, monkeypatch
):
    """Beam's embedded runner sends no options to its worker processes, so they read the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{store.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3.REGION)
    upload(store, WEIGHTS, dump_weights(3, tmp_path / "3.pt"))
    options = PipelineOptions(
        runner="FnApiRunner", direct_running_mode="multi_processing", direct_num_workers=N_WORKERS
    )
    handler = PytorchModelHandlerTensor(WEIGHTS, Constant, {}, large_model=large_model)
    output = tmp_path / "output"
    store.faults.append(cut)
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | beam.Create(range(60))
            | beam.Reshuffle()
            | beam.Map(lambda n: torch.full((1,), float(n)))
            | RunInference(handler)
            | beam.Map(lambda result: str(result.inference.tolist()))
            | beam.io.WriteToText(str(output), shard_name_template="")
        )
    assert output.read_text().splitlines() == ["[3.0, 3.0]"] * 60
    n_loads = 1 if large_model else N_WORKERS
    assert store.count("GET", "weights.pt") == n_loads + 1  # one of them was cut off


def test_nothing_is_left_in_the_temporary_folder(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    upload(store, WEIGHTS, b"no model")
    with pytest.raises(ModelLoadError):
        load_values()
    assert not os.listdir(tmp_path)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", __file__]))
