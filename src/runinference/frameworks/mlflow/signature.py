"""What the signature of an MLflow model declares about its inputs and its outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from runinference.collate.named_inputs import InputSpec
from runinference.handlers.model_signature import ModelSignature, get_value_type, make_signature

_DTYPES = {
    "boolean": bool,
    "integer": np.int32,
    "long": np.int64,
    "float": np.float32,
    "double": np.float64,
    "string": str,
    "binary": bytes,
}


def get_columns(model: Any) -> list[InputSpec] | None:
    """Return the named columns that a model takes, or None if it takes something else."""
    schema = model.metadata.get_input_schema()
    is_columns = schema is not None and not schema.is_tensor_spec() and schema.has_input_names()
    return _to_specs(schema) if is_columns else None


def get_tensors(model: Any) -> list[InputSpec]:
    """Return the tensors that a model takes; none if it takes something else. A tensor may have no name."""
    schema = model.metadata.get_input_schema()
    return _to_specs(schema) if schema is not None and schema.is_tensor_spec() else []


def takes_objects(model: Any) -> bool:
    """Return whether a model takes a list of texts, numbers or other objects: columns without names."""
    schema = model.metadata.get_input_schema()
    return bool(schema and not schema.is_tensor_spec() and not schema.has_input_names())


def get_properties(model: Any) -> list[InputSpec]:
    """Return the properties of the objects that a model takes, as for a pydantic class; none for other inputs."""
    schema = model.metadata.get_input_schema()
    if not takes_objects(model) or len(schema.inputs) > 1:
        return []
    return [
        InputSpec(each.name, _get_dtype(each.dtype), (None,), each.required)
        for each in getattr(schema.inputs[0].type, "properties", ())
    ]


def get_parameters(model: Any) -> list[str]:
    """Return the names of the inference parameters that a model declares."""
    schema = model.metadata.get_params_schema()
    return [] if schema is None else [spec.name for spec in schema.params]


def get_signature(model: Any) -> ModelSignature:
    """Return the features and the output that a model declares."""
    schema = model.metadata.get_output_schema()
    outputs = [] if schema is None else _to_specs(schema)
    output = outputs[0] if len(outputs) == 1 else None
    columns = get_columns(model) or get_properties(model) or None
    signature = make_signature(get_tensors(model) if columns is None else columns, output)
    if columns is not None:
        # Also a single column is a feature, and so are columns that may be missing.
        features = {spec.name: get_value_type(spec) for spec in columns}
        optional = [spec.name for spec in columns if not spec.required]
        signature = replace(
            signature, features=features, optional=optional, n_features=len(features)
        )
    return signature


def _to_specs(schema: Any) -> list[InputSpec]:
    """Return the columns or tensors of a schema, with the batch as first dimension."""
    if not schema.is_tensor_spec():
        return [
            InputSpec(spec.name or "", _get_dtype(spec.type), (None,), spec.required)
            for spec in schema.inputs
        ]
    return [_to_tensor(spec) for spec in schema.inputs]


def _to_tensor(spec: Any) -> InputSpec:
    dtype = np.dtype(spec.type)
    if dtype.kind == "O":  # for MLflow, anything
        return InputSpec(spec.name or "", None, ())
    shape = tuple(None if size < 0 else int(size) for size in spec.shape)
    return InputSpec(spec.name or "", np.dtype(str) if dtype.kind == "U" else dtype, shape)


def _get_dtype(kind: Any) -> Any:
    """Return the NumPy dtype of a type of MLflow; None for times and nested types."""
    found = _DTYPES.get(getattr(kind, "name", ""))
    return None if found is None else np.dtype(found)
