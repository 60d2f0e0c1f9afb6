"""A handler for MLflow models, of any flavor that MLflow loads as a Python function (``mlflow.pyfunc``)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from typing_extensions import Unpack

from runinference.checks import check_mapping, check_path, check_sha256
from runinference.collate.unbatch import unbatch
from runinference.errors import ModelInputError, OptionError, suggest
from runinference.extras import need
from runinference.frameworks.mlflow.inputs import SignatureInput, divide_by_columns, make_input
from runinference.frameworks.mlflow.loading import (
    digest_folder,
    fetch_folder,
    load_metadata,
    load_pyfunc,
)
from runinference.frameworks.mlflow.signature import get_parameters, get_signature
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_signature import ModelSignature
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

__all__ = ["MLflowModelHandler", "digest_model"]


def digest_model(model_uri: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of an MLflow model, for the option ``model_sha256``. Nothing is loaded.

    The digest depends on the names and contents of all files in the model's folder, except for ``__pycache__``
    folders.

    Args:
        model_uri: The path of the model's folder, or a URI of MLflow, as in ``MLflowModelHandler``.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelLoadError: The folder can't be read, or contains no MLflow model.
    """
    folder = fetch_folder(check_path("model_uri", model_uri))
    try:
        return digest_folder(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class MLflowModelHandler(ModelHandler[Any, PredictionResult, Any]):
    """Run an MLflow model on rows, DataFrames, arrays or other objects.

    The model is loaded with ``mlflow.pyfunc.load_model``, and its ``predict`` is called once per batch. An element
    is one row or one object:

    * a dictionary, named tuple, dataclass, ``beam.Row`` or pandas Series with named values, or a DataFrame with a
      single row. The rows of a batch become one DataFrame, without an index.
    * an array, or a dictionary of arrays by input name. The arrays of a batch are stacked along a new first axis.
      They must have the same shape.
    * a SciPy sparse matrix with a single row.
    * a text or any other object. The model gets the list of the batch.

    If the model has a signature, MLflow checks each batch against it. Numbers are converted to the types of the
    signature where these hold their values.

    Loading an MLflow model runs code: its files can contain pickles and Python modules, and they name the module
    that loads them. Load only models that you trust, and pin them with ``model_sha256``.

    >>> import mlflow.sklearn, os, pandas as pd, tempfile
    >>> from mlflow.models import infer_signature
    >>> from sklearn.linear_model import LinearRegression
    >>> rooms = pd.DataFrame({"width": [1.0, 2.0, 3.0], "length": [5.0, 2.0, 4.0]})
    >>> model = LinearRegression().fit(rooms, rooms.width + rooms.length)
    >>> path = os.path.join(tempfile.mkdtemp(), "model")
    >>> signature = infer_signature(rooms, model.predict(rooms))
    >>> mlflow.sklearn.save_model(model, path, signature=signature, pip_requirements=["scikit-learn"])
    >>> handler = MLflowModelHandler(path)
    >>> [round(result.inference) for result in handler.predict([{"width": 2, "length": 3}])]
    [5]
    """

    _metrics_namespace = "BeamML_MLflow"
    _path_attribute = "_model_uri"
    _has_native_model = True
    _supports_dynamic_batching = True
    _row_input = SignatureInput()

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        *,
        model_config: Mapping[str, Any] | None = None,
        model_sha256: str | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Configure which model is loaded.

        Args:
            model_uri: The path of the model's folder, which contains a file ``MLmodel``, on any file system that
                Beam supports; or a URI of MLflow, ``models:/name/version`` or ``runs:/run_id/path``. For a URI,
                set ``MLFLOW_TRACKING_URI`` in the environment of the workers, for example with ``env_vars``.
                Folders that aren't local are copied to temporary folders.
            model_config: Values that replace those of the model's own configuration, by name.
            model_sha256: The expected digest of the model, from ``digest_model``. The model is copied to a
                temporary folder, which is checked before anything in it is loaded.
            **options: The options of every handler, see ``HandlerOptions``. A list that the model returns has one
                item per example, unless ``list_output`` declares something else.

        Raises:
            OptionError: ``model_uri`` isn't a path, ``model_sha256`` isn't a digest, or another option is invalid.
        """
        super().__init__(**options)
        if model_config is not None:
            check_mapping("model_config", model_config)
        if model_sha256 is not None:
            check_sha256("model_sha256", model_sha256)
        self._model_uri = check_path("model_uri", model_uri)
        self._model_config = model_config
        self._model_sha256 = model_sha256
        self._list_output = self._list_output or "per_element"

    def load_model(self) -> Any:
        """Load the model as an ``mlflow.pyfunc.PyFuncModel``.

        Raises:
            ModelNotFoundError: There is no model at ``model_uri``.
            ModelLoadError: The model has another digest, is damaged, or needs a package that isn't installed.
        """
        return load_pyfunc(self._model_uri, self._model_sha256, self._model_config)

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Run the model on a batch.

        Args:
            batch: Rows, arrays or other objects, all of the same kind; or a table with one row per example.
            model: The model that ``load_model`` returned.
            inference_args: Values of the inference parameters (``params``) that the signature declares, or None.

        Raises:
            BatchShapeError: The examples differ in shape or columns, or aren't single rows.
            ElementError: An example can't be converted, or doesn't have the types of the signature.
            OptionError: The signature declares no such parameter.
            ResultMismatchError: The number of predictions isn't the number of examples.
        """
        _check_parameters(inference_args or {}, get_parameters(model))
        parts = divide_by_columns(batch, model)
        outputs = [_predict(model, examples, inference_args) for _, examples in parts]
        if len(parts) == 1:
            return self.results_of(batch, outputs[0], self._model_uri)
        predictions: list[Any] = [None] * len(batch)
        for (indices, _), output in zip(parts, outputs, strict=True):
            found = unbatch(output, len(indices), self._list_output)
            for index, prediction in zip(indices, found, strict=True):
                predictions[index] = prediction
        return self.results_of(batch, predictions, self._model_uri)

    def read_model_signature(self) -> ModelSignature:
        """Return the signature in the model's file ``MLmodel``. The model isn't loaded."""
        return get_signature(SimpleNamespace(metadata=load_metadata(self._model_uri)))

    def get_model_signature(self, model: Any) -> ModelSignature:
        return get_signature(model)


def _check_parameters(given: Mapping[str, Any], declared: Sequence[str]) -> None:
    """Raise `OptionError` for a parameter that MLflow would ignore."""
    for name in given:
        if name not in declared:
            raise OptionError(
                f"The signature of the model declares no parameter {name!r} (inference_args)."
                f"{suggest(name, declared)} "
                + (
                    f"Its parameters are {', '.join(declared)}."
                    if declared
                    else "It declares none. To fix this, save the model with a signature that has params."
                )
            )


def _predict(model: Any, batch: Any, inference_args: dict[str, Any] | None) -> Any:
    exceptions = need("mlflow.exceptions", extra="mlflow")
    data = make_input(batch, model)
    try:
        return model.predict(data, params=inference_args)
    except exceptions.MlflowException as error:
        reason = str(error).rpartition(". Error: ")[2]  # without the data
        schema = str(model.metadata.get_input_schema())
        raise ModelInputError(
            f"The model rejects the batch ({reason[:500]}). To fix this, convert the elements to the columns and "
            f"types of the model's signature with with_preprocess_fn: {schema[:500]}."
        ) from error
