"""The base class of the handlers for language models whose answers can have a declared type."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics

from runinference.checks import check_bool
from runinference.errors import InvalidOutputError, OptionError
from runinference.handlers.model_signature import ModelSignature
from runinference.remote.openai_batch import OpenAIBatchModelHandler, ReadFirst
from runinference.remote.request_pool import RequestPool
from runinference.remote.structured_chat import StructuredChat
from runinference.results import PredictionResult


class StructuredModelHandler(OpenAIBatchModelHandler):
    """A language model whose answers are texts, or values of a declared type."""

    _structured: StructuredChat | None = None
    _keep_generation = False

    def _set_output_type(
        self, output_type: Any, max_attempts: int | None, mode: str, keep_generation: bool
    ) -> None:
        """Set the type of the answers, and how the server gets its schema."""
        if output_type is not None:
            attempts = 3 if max_attempts is None else max_attempts
            self._structured = StructuredChat(output_type, attempts, mode)
        elif max_attempts is not None or keep_generation:
            raise OptionError(
                "max_output_attempts and keep_generation have no effect without output_type. To fix this, pass "
                "output_type, or leave them out."
            )
        check_bool("keep_generation", keep_generation)
        self._keep_generation = keep_generation

    @abstractmethod
    def _to_messages(self, example: Any) -> list[Any]:
        """Return the messages of an example, or raise ``ElementError``."""

    def _from_messages(self, messages: Sequence[Any]) -> Any:
        """Return the example with these messages."""
        return messages

    def read_model_signature(self) -> ModelSignature:
        """Return the type of the answers, and those of their fields, if ``output_type`` declares them."""
        if self._structured is None or self._keep_generation:
            return super().read_model_signature()
        return ModelSignature(
            output=self._structured.column_type, fields=self._structured.field_types
        )

    def get_result_options(self) -> dict[str, Any]:
        options = super().get_result_options()
        if self._structured is not None:
            options["_structured"] = self._structured.identity
        return options

    def get_result_types(self) -> Sequence[type | str]:
        if self._structured is None:
            return super().get_result_types()
        others = super().get_result_types() if self._keep_generation else ()
        return [*self._structured.classes, *others]

    def _check_fields(self, option: str, fields: Mapping[str, Any]) -> None:
        super()._check_fields(option, fields)
        for name in ("n", "response_format"):
            if self._structured is not None and name in fields:
                raise OptionError(
                    f"{option} has {name!r}, which output_type doesn't allow. To fix this, remove one of them."
                )

    def _send(
        self, pool: RequestPool, part: Any, model: Any, args: dict[str, Any] | None
    ) -> list[PredictionResult]:
        if self._structured is None:
            return super()._send(pool, part, model, args)
        return self._ask(self._structured, pool, part, model, args, None)

    def _build_first_body(
        self, part: Sequence[Any], args: dict[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if self._structured is None:
            return super()._build_first_body(part, args)
        messages, fields = self._structured.build_request(self._to_messages(part[0]))
        example = self._from_messages(messages)
        return super()._build_first_body([example], {**(args or {}), **fields})

    def _finish(
        self,
        pool: RequestPool,
        part: Any,
        model: Any,
        args: dict[str, Any] | None,
        read_first: ReadFirst,
    ) -> list[PredictionResult]:
        if self._structured is None:
            return super()._finish(pool, part, model, args, read_first)
        return self._ask(self._structured, pool, part, model, args, read_first)

    def _ask(
        self,
        structured: StructuredChat,
        pool: RequestPool,
        part: Any,
        model: Any,
        args: dict[str, Any] | None,
        read_first: ReadFirst | None,
    ) -> list[PredictionResult]:
        """Return the value for an example. The first response can be one of the batch API."""
        send_request, retries = super()._send, self._count_output_retry

        def send(messages: Sequence[Any], fields: Mapping[str, Any]) -> PredictionResult:
            nonlocal read_first
            if read_first is not None:
                read, read_first = read_first, None
                return read()[0]
            request = self._from_messages(messages)
            [result] = send_request(pool, [request], model, {**(args or {}), **fields})
            return result

        [example] = part
        try:
            answer = structured.ask(
                self._to_messages(example), send, model, self._model, retries, self._keep_generation
            )
        except InvalidOutputError as error:  # it quotes the answer
            raise InvalidOutputError(model.redact_key(str(error))) from None
        inference = answer if self._keep_generation else answer.value
        return [PredictionResult(example, inference, self._model)]

    def _count_output_retry(self) -> None:
        Metrics.counter(self.get_metrics_namespace(), "output_retries").inc()
