"""The handlers and the transform for Beam YAML.

Importing this module registers all handlers of the library for ``RunInference`` of Beam YAML, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, cast

import apache_beam as beam

from runinference.checks import check_mapping, check_text
from runinference.errors import OptionError
from runinference.extras import need
from runinference.handlers.handler_config import (
    create_handler,
    get_handler_types,
    parse_output,
    to_plain,
)
from runinference.handlers.options import KeywordsChecked, reject_unknown
from runinference.handlers.row_handler import with_rows
from runinference.handlers.row_options import OutputOption, RowOptions
from runinference.transforms import run_inference

__all__ = ["RunInference"]

_ML = need("apache_beam.yaml.yaml_ml", extra="yaml")
_ERRORS = need("apache_beam.yaml.yaml_errors", extra="yaml")
_ERROR_OPTIONS = ("output", "threshold", "timeout", "use_subprocess")


class RunInference(KeywordsChecked, beam.PTransform):  # type: ignore[misc]
    """Run a model on the rows of a YAML pipeline, and add its predictions as columns.

    A pipeline uses it with a provider:

    ```yaml
    pipeline:
      type: chain
      transforms:
        - type: ReadFromCsv
          config:
            path: patients.csv
        - type: RunInference
          config:
            model_handler:
              type: SklearnModelHandlerPandas
              config:
                model_uri: model.pickle
            columns: [age, bmi]
            keep: [id]
            output: progress
        - type: WriteToJson
          config:
            path: progress.json
    providers:
      - type: python
        config: {}
        transforms:
          RunInference: runinference.yaml.RunInference
    ```
    """

    def __init__(
        self,
        model_handler: Mapping[str, Any],
        *,
        columns: str | Sequence[str] | None = None,
        output: OutputOption | None = None,
        keep: str | Sequence[str] | None = None,
        error_handling: Mapping[str, Any] | None = None,
        cache: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Create the transform.

        Args:
            model_handler: ``type`` is the name of a handler of the library, such as ``SklearnModelHandlerNumpy``,
                or the full name of your own class, such as ``my_module.MyHandler``. ``config`` contains the
                options of its constructor. Functions and classes are ``callable: module.name``, other objects have
                a ``type`` and a ``config``, and members of enumerations are their names.
            columns: The names of the feature columns, in the order of the training data. By default, the features
                that the model names.
            output: The name of the column with the predictions, ``prediction`` by default. To declare the type of
                its values, pass a mapping, such as ``{prediction: number}``. The types are ``boolean``,
                ``integer``, ``number``, ``string``, ``bytes``, and ``{type: array, items: number}``. Several names
                stand for the fields of the model's output.
            keep: The names of the columns that results have, too. By default, all columns.
            error_handling: ``output`` is the name of the output with the rows that failed, as in other transforms
                of Beam YAML. They have the columns ``element``, ``msg``, and ``stack``. Optional keys are
                ``threshold``, ``timeout``, and ``use_subprocess``, as in ``with_exception_handling``.
            cache: The options of ``with_cache``, such as ``{location: results}``, to store results and call the
                model once for equal rows.
            **options: Other options of ``runinference.RunInference``, such as ``inference_args`` or
                ``watch_model_pattern``.

        Raises:
            OptionError: The handler is unknown, an option is unknown or out of range, or the columns don't fit the
                model. The message suggests the closest name.
        """
        super().__init__()
        handler = _create_handler(model_handler)
        if cache is not None:
            cache_options = to_plain(cache)
            check_mapping("cache", cache_options)
            known = [f"cache.{name}" for name in signature(handler.with_cache).parameters]
            reject_unknown(type(self), [f"cache.{name}" for name in cache_options], known)
            handler = handler.with_cache(**cache_options)
        transform = run_inference.RunInference(
            handler,
            columns=columns,
            output="prediction" if output is None else parse_output(to_plain(output)),
            keep=keep,
            **to_plain(options),
        )
        self._error_output: str | None = None
        if error_handling:
            handling = to_plain(error_handling)
            reject_unknown(_ERRORS.ErrorHandlingConfig, handling, _ERROR_OPTIONS)
            self._error_output = handling.pop("output", None)
            check_text("output of error_handling", self._error_output)
            transform = transform.with_exception_handling(**handling)
        self._transform = transform

    def expand(self, rows: beam.PCollection) -> Any:
        results = rows | self._transform
        if self._error_output is None:
            return results
        predictions, dead_letters = results
        errors = dead_letters.failed_inferences | "Errors" >> _ERRORS.map_errors_to_standard_format(
            rows.element_type
        )
        return {"good": predictions, self._error_output: errors}


def _create_handler(spec: Any) -> Any:
    spec = to_plain(spec)
    check_mapping("model_handler", spec)
    reject_unknown(RunInference, (f"model_handler.{key}" for key in spec), _HANDLER_KEYS)
    if "type" not in spec:
        raise OptionError(
            "model_handler has no type. To fix this, add the name of a handler, such as "
            "type: SklearnModelHandlerNumpy."
        )
    check_text("type of model_handler", spec["type"])
    config = spec.get("config") or {}
    check_mapping("config of model_handler", config)
    return create_handler(spec["type"], config)


_HANDLER_KEYS = ("model_handler.type", "model_handler.config")


class _HandlerProvider(_ML.ModelHandlerProvider):  # type: ignore[misc, name-defined]
    """A handler in Beam's own ``RunInference`` transform of YAML, which adds one column to rows.

    With ``preprocess``, the handler gets what that function returns for a row, and the column contains a
    ``PredictionResult``, as with Beam's handlers. Without it, the handler gets ``columns``, and the column
    contains the prediction.
    """

    def __init__(
        self,
        handler_type: str,
        preprocess: dict[str, str] | None = None,
        postprocess: dict[str, str] | None = None,
        columns: Sequence[str] | None = None,
        output_type: Any = None,
        **config: Any,
    ) -> None:
        handler = create_handler(handler_type, config)
        self._output_type: Any = Any
        self._has_rows = preprocess is None
        if self._has_rows:
            output = parse_output({"prediction": output_type}) if output_type else "prediction"
            row_options = cast(RowOptions, RowOptions.create(columns, output, keep=()))
            handler = with_rows(handler, row_options)
            self._output_type = handler.output[0].type
            if postprocess is not None:
                raise OptionError(
                    "postprocess is given without preprocess, but the handler gets columns. To fix this, add "
                    "MapToFields after RunInference instead of postprocess."
                )
        elif columns is not None or output_type is not None:
            raise OptionError(
                "columns and output_type have no effect with preprocess, which creates the input of the model. To "
                "fix this, leave them out."
            )
        super().__init__(handler, preprocess, postprocess)

    def default_preprocess_fn(self) -> Any:
        return _get_same

    def default_postprocess_fn(self) -> Any:
        return _get_prediction if self._has_rows else _get_same

    def inference_output_type(self) -> Any:
        return self._output_type

    @staticmethod
    def validate(model_handler_spec: Any) -> None:
        """Accept the config: the constructor has checked it."""


def _get_same(value: Any) -> Any:
    return value


def _get_prediction(row: Any) -> Any:
    return row.prediction


for _name in get_handler_types():
    _ML.ModelHandlerProvider.register_handler_type(_name)(partial(_HandlerProvider, _name))
