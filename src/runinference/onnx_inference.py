"""A handler for ONNX models, on NumPy arrays or on dictionaries of arrays by input name."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from runinference.checks import check_callable, check_names, check_path
from runinference.collate.batch_axis import BatchAxis, repeat_first
from runinference.collate.named_inputs import InputSpec, bind_inputs
from runinference.collate.row_inputs import NamedInput
from runinference.collate.unbatch import batch_length
from runinference.errors import OptionError, suggest
from runinference.frameworks.onnx import session as onnx_session
from runinference.frameworks.onnx.calling import NUMPY_TYPES, check_types, run_session
from runinference.handlers.compute_turn import CallOverlap
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_signature import ModelSignature, make_signature
from runinference.handlers.options import HandlerOptions, accepts
from runinference.results import PredictionResult

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["NumpyInferenceFn", "OnnxModelHandlerNumpy", "default_numpy_inference_fn"]

NumpyInferenceFn = Callable[[Any, Sequence[Any], "dict[str, Any] | None"], Any]
"""An ``inference_fn``: ``(session, batch, inference_args)`` to the model's output for the batch."""


def default_numpy_inference_fn(
    inference_session: onnxruntime.InferenceSession,
    batch: Sequence[Any],
    inference_args: dict[str, Any] | None = None,
) -> Any:
    """Stack the arrays of a batch, run the model once, and return its first output.

    Args:
        inference_session: The model.
        batch: Arrays of the same shape for the model's first input, or dictionaries of such arrays by input name.
        inference_args: Additional inputs by name, the same for all examples, or None.

    Returns:
        The first output, whose leading dimension is the batch size: an array of shape ``(batch, …)``, or a list.

    Raises:
        BatchShapeError: The arrays differ in shape, or don't have the shape that the model expects.
        ElementError: An input is missing, unknown, or has a dtype that the model doesn't accept.
    """
    return _run(None, inference_session, batch, inference_args)


class OnnxModelHandlerNumpy(ModelHandler[Any, PredictionResult, Any]):
    """Run an ONNX model on NumPy arrays, or on dictionaries of arrays by input name.

    The arrays of a batch are stacked along a new first axis. They must have the same shape. Numbers are converted
    to the dtype that the model expects if that is safe, for example from float64 to float32.

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

    _metrics_namespace = "BeamML_Onnx"
    _path_attribute = "_model_uri"
    _has_native_model = True
    _keeps_examples = True
    _supports_dynamic_batching = True
    _row_input = NamedInput(lambda session: {spec.name: spec for spec in _get_inputs(session)})

    @accepts(HandlerOptions)
    def __init__(
        self,
        model_uri: str | os.PathLike[str],
        session_options: Callable[[], onnxruntime.SessionOptions] | None = None,
        providers: Sequence[str | tuple[str, dict[str, Any]]] = [
            "CUDAExecutionProvider",
            "CPUExecutionProvider",
        ],
        provider_options: Sequence[dict[str, Any]] | None = None,
        *,
        inference_fn: NumpyInferenceFn = default_numpy_inference_fn,
        output_names: str | Sequence[str] | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        """Configure the model file and where the model runs.

        Args:
            model_uri: The path of the ONNX file, on any file system that Beam supports. Loading it runs no code.
            session_options: A function that returns ``onnxruntime.SessionOptions``. The options themselves can't
                be sent to workers.
            providers: Execution providers in order of preference: names, or pairs of a name and a dictionary of
                options. A worker skips providers that its onnxruntime doesn't support. If none is left, or none
                works, the model runs on the CPU, and a warning is logged.
            provider_options: One dictionary of options per provider, if ``providers`` contains only names.
            inference_fn: A function ``(session, batch, inference_args)`` that calls the model and returns its
                output for the batch.
            output_names: The name of one output, or a list of several. With one name, results are the rows of that
                output. With a list, they are dictionaries by output name. By default, the first output, as in
                Beam.
            **options: The options of every handler, see ``HandlerOptions``.

        Raises:
            OptionError: A provider is unknown, ``provider_options`` doesn't match ``providers``,
                ``session_options`` isn't a function, or ``output_names`` is combined with ``inference_fn``.
        """
        super().__init__(**options)
        check_callable("inference_fn", inference_fn)
        if output_names is not None:
            check_names(
                "output_names", [output_names] if isinstance(output_names, str) else output_names
            )
            if not output_names:
                raise OptionError(
                    "output_names is empty. To fix this, name outputs, or leave it out."
                )
        onnx_session.check_session_options(session_options)
        onnx_session.check_providers(providers, provider_options)
        if output_names is not None and inference_fn is not default_numpy_inference_fn:
            raise OptionError(
                "output_names has no effect on your own inference_fn, which runs the model itself. Leave it "
                "out, and call session.run(output_names, inputs) in the function."
            )
        self._model_uri = check_path("model_uri", model_uri)
        self._session_options = session_options
        self._providers = providers
        self._provider_options = provider_options
        self._model_inference_fn = inference_fn
        if output_names is not None:
            self._model_inference_fn = functools.partial(_run, output_names)

    def load_model(self) -> onnxruntime.InferenceSession:
        """Load the file as an ``onnxruntime.InferenceSession``.

        Raises:
            ModelNotFoundError: The file doesn't exist.
            ModelLoadError: The file isn't an ONNX model, is truncated, needs a later version of onnxruntime, or
                has inputs or outputs of a dtype that NumPy doesn't support, such as bfloat16.
            OptionError: The model has no output with a name in ``output_names``.
        """
        session = onnx_session.load_session(
            self._model_uri, self._session_options, self._providers, self._provider_options
        )
        if (output_names := _get_output_names(self._model_inference_fn)) is not _OWN_FUNCTION:
            check_types(session, _list_outputs(output_names, session))
        return session

    def run_inference(
        self,
        batch: Sequence[Any],
        inference_session: Any,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[PredictionResult]:
        """Run the model on a batch.

        Args:
            batch: Arrays of the same shape for the model's first input, or dictionaries of such arrays by input
                name.
            inference_session: The ``onnxruntime.InferenceSession`` that ``load_model`` returned.
            inference_args: Additional inputs by name, the same for all examples, or None.

        Raises:
            BatchShapeError: The arrays differ in shape, or don't have the shape that the model expects.
            ElementError: An input is missing, unknown, or has a dtype that the model doesn't accept.
            ResultMismatchError: An output doesn't have one row per example.
        """
        call = self._model_inference_fn
        outputs = call(inference_session, batch, inference_args)
        size = None if self.gives_whole_results() else batch_length(batch)
        if size is not None:
            axis = BatchAxis(
                inference_session,
                (call, *(inference_args or ())),
                self._list_output,
                lambda n: call(inference_session, repeat_first(batch, n), inference_args),
            )
            outputs = axis.unbatch(outputs, size)
        return self.results_of(batch, outputs, self._model_uri)

    def get_model_signature(self, session: Any) -> ModelSignature:
        outputs = [
            InputSpec(node.name, NUMPY_TYPES.get(node.type), tuple(node.shape or ()))
            for node in session.get_outputs()
        ]
        names = _get_output_names(self._model_inference_fn)
        found = next((spec for spec in outputs if names in (None, spec.name)), None)
        return make_signature(_get_inputs(session), found)

    def may_modify_examples(self) -> bool:
        return not self._uses_default_fn() or super().may_modify_examples()

    def call_overlap(self) -> CallOverlap:
        is_overridden = type(self).run_inference is not OnnxModelHandlerNumpy.run_inference
        return CallOverlap(uses_turn=self._uses_default_fn() and not is_overridden)

    def _uses_default_fn(self) -> bool:
        function = getattr(self._model_inference_fn, "func", self._model_inference_fn)
        return function in (default_numpy_inference_fn, _run)


def _run(
    output_names: str | Sequence[str] | None,
    session: Any,
    batch: Sequence[Any],
    inference_args: dict[str, Any] | None = None,
) -> Any:
    names, others = _list_outputs(output_names, session), inference_args or {}
    arrays = bind_inputs(batch, _get_inputs(session), others)
    outputs = run_session(session, names, arrays)
    if output_names is None or isinstance(output_names, str):
        return outputs[0]
    return dict(zip(names, outputs, strict=True))


def _get_inputs(session: Any) -> list[InputSpec]:
    required, optional = session.get_inputs(), session.get_overridable_initializers()
    return [
        InputSpec(node.name, NUMPY_TYPES.get(node.type), tuple(node.shape), node in required)
        for node in (*required, *optional)
    ]


_OWN_FUNCTION = object()


def _get_output_names(inference_fn: Callable[..., Any]) -> Any:
    """Return the ``output_names`` of a function of this module, or ``_OWN_FUNCTION`` for one of the user."""
    if isinstance(inference_fn, functools.partial) and inference_fn.func is _run:
        return inference_fn.args[0]
    return None if inference_fn is default_numpy_inference_fn else _OWN_FUNCTION


def _list_outputs(output_names: str | Sequence[str] | None, session: Any) -> list[str]:
    known = [node.name for node in session.get_outputs()]
    if output_names is None:
        return known[:1]
    names = [output_names] if isinstance(output_names, str) else list(output_names)
    for name in names:
        if name not in known:
            raise OptionError(
                f"The model has no output {name!r} (output_names).{suggest(name, known)} Its outputs are "
                f"{', '.join(known)}."
            )
    return names
