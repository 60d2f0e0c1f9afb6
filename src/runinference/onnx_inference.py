"""A handler for ONNX models, on NumPy arrays or on dictionaries of arrays by input name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from typing_extensions import Unpack

from runinference.collate.named_inputs import InputSpec, bind_inputs
from runinference.errors import OptionError, suggest
from runinference.frameworks.onnx.session import (
    check_providers,
    check_session_options,
    load_session,
)
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

__all__ = ["OnnxModelHandlerNumpy"]

NumpyInferenceFn = Callable[[Any, Sequence[Any], "dict[str, Any] | None"], Any]


def default_numpy_inference_fn(
    inference_session: Any,
    batch: Sequence[Any],
    inference_args: dict[str, Any] | None = None,
) -> Any:
    """Stacks the arrays of a batch, runs the model once, and returns its first output.

    Args:
        inference_session: An ``onnxruntime.InferenceSession``.
        batch: Arrays of one shape, for the model's first input; or dictionaries of such arrays by the names of
            inputs.
        inference_args: Further inputs by name, the same for all examples.

    Raises:
        BatchShapeError: An array has another shape than the others, or than the model takes.
        ElementError: An input is missing, unknown, or of a type that the model does not take.
    """
    return _run(None, inference_session, batch, inference_args)


class OnnxModelHandlerNumpy(ModelHandler[Any, PredictionResult, Any]):
    """Runs an ONNX model on NumPy arrays, or on dictionaries of arrays by the names of the model's inputs.

    The arrays of a batch, which must have one shape, are stacked along a new first axis. Numbers of another type
    than the model takes are converted where that keeps their kind, such as float64 to float32.

    >>> import os, tempfile
    >>> from skl2onnx import to_onnx
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> rows, kinds = load_iris(return_X_y=True)
    >>> model = LogisticRegression(max_iter=1000).fit(rows, kinds)
    >>> path = os.path.join(tempfile.mkdtemp(), "iris.onnx")
    >>> with open(path, "wb") as file:
    ...     size = file.write(to_onnx(model, rows[:1].astype("float32")).SerializeToString())
    >>> handler = OnnxModelHandlerNumpy(path)
    >>> [int(result.inference) for result in handler.predict(rows[[0, 75, 149]])]
    [0, 1, 2]
    """

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str,
        session_options: Callable[[], Any] | None = None,
        providers: Sequence[Any] = ["CUDAExecutionProvider", "CPUExecutionProvider"],
        provider_options: Sequence[dict[str, Any]] | None = None,
        *,
        inference_fn: NumpyInferenceFn = default_numpy_inference_fn,
        output_names: str | Sequence[str] | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Names the model's file, and where it runs.

        Args:
            model_uri: The path of the file, on any file system that Beam reads. It runs no code.
            session_options: A function that makes the ``onnxruntime.SessionOptions``, which cannot be sent to
                workers themselves.
            providers: The execution providers to use, the preferred one first: names, or pairs of a name and its
                options. Those that a worker's onnxruntime does not have are passed over; where none is left, or
                none works, the model runs on the CPU, with a warning.
            provider_options: Options for each of them, where ``providers`` are names alone.
            inference_fn: Calls the model, in place of the default; gets the session, the examples and the
                inference arguments, and returns the outputs.
            output_names: Which outputs to give: the name of one, whose rows are the results; or several, in
                which case results are dictionaries by name. Without it the first, as in Beam.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: A provider is not known, or options do not fit the providers; session options that are
                no function; output names together with an ``inference_fn`` of your own.
        """
        super().__init__(**options)
        check_session_options(session_options)
        check_providers(providers, provider_options)
        if output_names is not None and inference_fn is not default_numpy_inference_fn:
            raise OptionError(
                "output_names has no effect on an inference_fn of your own, which runs the model itself. Leave it "
                "out, and call session.run(output_names, inputs) there."
            )
        self._model_uri = model_uri
        self._session_options = session_options
        self._providers = providers
        self._provider_options = provider_options
        self._model_inference_fn = inference_fn
        if output_names is not None:
            self._model_inference_fn = functools.partial(_run, output_names)

    def load_model(self) -> Any:
        """An ``onnxruntime.InferenceSession`` of the file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelLoadError: The file is no ONNX model, is truncated, or needs a later onnxruntime.
        """
        return load_session(
            self._model_uri, self._session_options, self._providers, self._provider_options
        )

    def update_model_path(self, model_path: str | None = None) -> None:
        self._model_uri = model_path or self._model_uri

    def run_inference(
        self,
        batch: Sequence[Any],
        inference_session: Any,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionResult]:
        """Results for a batch; ``inference_args`` are further inputs of the model by name.

        Raises:
            BatchShapeError: An array has another shape than the others, or than the model takes.
            ElementError: An input is missing, unknown, or of a type that the model does not take.
            ResultMismatchError: An output does not have one row for each example.
        """
        outputs = self._model_inference_fn(inference_session, batch, inference_args)
        return self.results_of(batch, outputs, self._model_uri)

    def may_join_threads(self) -> bool:
        return True

    def get_metrics_namespace(self) -> str:
        return "BeamML_Onnx"


def _run(
    output_names: str | Sequence[str] | None,
    session: Any,
    batch: Sequence[Any],
    inference_args: dict[str, Any] | None = None,
) -> Any:
    wanted = _wanted(output_names, [node.name for node in session.get_outputs()])
    outputs = session.run(wanted, bind_inputs(batch, _takes(session), inference_args or {}))
    if output_names is None or isinstance(output_names, str):
        return outputs[0]
    return dict(zip(wanted, outputs, strict=True))


def _takes(session: Any) -> list[InputSpec]:
    required, optional = session.get_inputs(), session.get_overridable_initializers()
    return [
        InputSpec(node.name, _NUMPY_TYPES.get(node.type), tuple(node.shape), node in required)
        for node in (*required, *optional)
    ]


def _wanted(output_names: str | Sequence[str] | None, known: list[str]) -> list[str]:
    if output_names is None:
        return known[:1]
    wanted = [output_names] if isinstance(output_names, str) else list(output_names)
    for name in wanted:
        if name not in known:
            raise OptionError(
                f"The model has no output {name!r} (output_names).{suggest(name, known)} Its outputs are "
                f"{', '.join(known)}."
            )
    return wanted


#: NumPy's types by the names that ONNX has for them; text and bfloat16 are left to onnxruntime.
_NUMPY_TYPES = {
    "tensor(bool)": np.dtype("bool"),
    "tensor(float)": np.dtype("float32"),
    "tensor(double)": np.dtype("float64"),
    "tensor(float16)": np.dtype("float16"),
    **{
        f"tensor({kind}int{bits})": np.dtype(f"{kind}int{bits}")
        for kind in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
