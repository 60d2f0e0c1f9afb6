"""Per-key models: one handler that combines several, each with its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from typing_extensions import Self

from runinference.caching.memory_budget import estimate_model_bytes
from runinference.caching.model_cache import CacheLimits, ModelCache
from runinference.collate.unsplit import returns_unsplit_results
from runinference.errors import (
    ElementError,
    OptionError,
    UnknownKeyError,
    describe_value,
    missing_key_error,
    shorten_text,
    suggest,
)
from runinference.handlers.call import call_model, copy_containers
from runinference.handlers.key_mapping import (
    KeyModelMapping,
    check_mappings,
    not_hashable_message,
)
from runinference.handlers.model_handler import ModelHandler
from runinference.handlers.model_update import paths_by_key, with_model_path

#: A key that no model is mapped to is compared with at most this many keys, to suggest the closest.
_MAX_COMPARED_KEYS = 100


@dataclass(frozen=True, eq=False)
class KeyedModel:
    """One of the models of a handler with per-key models.

    Attributes:
        mapping: The number of its mapping in the list that the handler was created with.
        path: The path that a refresh named, or an empty text.
        keys: The keys whose elements it serves.
        handler: Loads and calls the model, for elements with keys.
        labels: The texts for its metrics: that of its first key and, after a refresh, the name in the refresh.
    """

    mapping: int
    path: str
    keys: tuple[Any, ...]
    handler: Any
    labels: tuple[str, ...]

    @property
    def identity(self) -> tuple[int, str]:
        """What identifies the model: mappings and paths, because different keys may have equal texts."""
        return self.mapping, self.path


class PerKeyModelHandler(ModelHandler[Any, Any, Any]):
    """A handler of elements ``(key, example)``, which routes each to the handler of its key.

    Its model is a cache, which loads the model of each handler on first use.

    Attributes:
        mappings: The mappings of keys to handlers.
        cache_limits: The limits on the models that a process holds.
    """

    _metrics_namespace = "BeamML_KeyedModels"

    def __init__(
        self,
        mappings: Sequence[KeyModelMapping[Any, Any, Any, Any]],
        cache_limits: CacheLimits,
        keyed: Callable[[Any], Any],
    ) -> None:
        """Combine the handlers of several mappings; ``keyed`` wraps each so that it takes ``(key, example)``."""
        check_mappings(mappings)
        super().__init__()
        self.mappings = list(mappings)
        self.cache_limits = cache_limits
        self._keyed = keyed
        self._by_key: dict[Any, KeyedModel] | None = None

    def models_by_key(self) -> dict[Any, KeyedModel]:
        """Return the model of each key. Keys of one mapping share a model."""
        if self._by_key is None:
            labels = label_keys(key for mapping in self.mappings for key in mapping.keys)
            by_key = {}
            for number, mapping in enumerate(self.mappings):
                handler = self._keyed(mapping.mh)
                if self.gives_whole_results():
                    handler = handler.with_no_batching(whole_results=True)
                keys = tuple(mapping.keys)
                model = KeyedModel(number, "", keys, handler, (labels[keys[0]],))
                by_key.update(dict.fromkeys(keys, model))
            self._by_key = by_key
        return self._by_key

    def update_models(self, update: Any) -> dict[Any, KeyedModel]:
        """Return the model of each key after a refresh. Keys that shared a model share a new one with one path.

        Raises:
            OptionError: The refresh is invalid.
        """
        before = self.models_by_key()
        paths = paths_by_key(update, before)
        groups: dict[tuple[int, str], list[Any]] = {}
        for key, (path, _) in paths.items():
            groups.setdefault((before[key].mapping, path), []).append(key)
        labels = label_keys(before)
        after = {}
        for (number, path), keys in groups.items():
            handler = with_model_path(before[keys[0]].handler, path)
            names = labels[keys[0]], paths[keys[0]][1]
            after.update(dict.fromkeys(keys, KeyedModel(number, path, tuple(keys), handler, names)))
        return after

    def model_for(self, key: Any) -> KeyedModel:
        """Return the model of a key; raise `UnknownKeyError` or `ElementError` if it has none."""
        by_key = self.models_by_key()
        try:
            return by_key[key]
        except KeyError:
            raise self._unknown_key_error(key) from None
        except TypeError as error:
            raise ElementError(not_hashable_message(key, error)) from None

    def _unknown_key_error(self, key: Any) -> UnknownKeyError:
        if self._texts is None:
            self._texts = {_to_text(known).casefold(): known for known in self.models_by_key()}
        text = _to_text(key).casefold()
        hint = f" Did you mean {describe_value(self._texts[text])}?" if text in self._texts else ""
        if not hint and len(self._texts) <= _MAX_COMPARED_KEYS:
            hint = suggest(text, map(_to_text, self.models_by_key()))
        return UnknownKeyError(
            f"No model is mapped to the key {describe_value(key)}.{hint} Add it to the keys of a KeyModelMapping."
        )

    _texts: dict[str, Any] | None = None

    def load_model(self) -> ModelCache:
        return ModelCache(self.cache_limits)

    def run_inference(
        self, batch: Any, model: ModelCache, inference_args: dict[str, Any] | None = None
    ) -> Any:
        """Run each model once on its part of a batch. Used by ``predict`` and by Beam's own transform."""
        if self.gives_whole_results():
            return self._run_one(self.model_for(split_pair(batch)[0]), batch, model, inference_args)
        parts: dict[KeyedModel, list[int]] = {}
        for index, element in enumerate(batch):
            parts.setdefault(self.model_for(split_pair(element)[0]), []).append(index)
        results: dict[int, Any] = {}
        for one in _loaded_first(parts, model):
            part = [batch[index] for index in parts[one]]
            output = self._run_one(one, part, model, inference_args)
            results.update(zip(parts[one], output, strict=True))
        return [results[index] for index in range(len(batch))]

    def group_by_model(
        self, examples: Iterable[Any], model: ModelCache
    ) -> Iterable[tuple[Any, Iterable[tuple[int, Any]]]]:
        """Return the numbered examples of each model, loaded models first."""
        groups: dict[KeyedModel, list[tuple[int, Any]]] = {}
        for index, example in enumerate(examples):
            groups.setdefault(self.model_for(split_pair(example)[0]), []).append((index, example))
        return [(one.handler, groups[one]) for one in _loaded_first(groups, model)]

    def group_rows_by_model(
        self, batches: Iterable[Any], model: ModelCache
    ) -> Iterable[tuple[Any, Iterable[tuple[list[int], Any]]]]:
        """Return the rows of each model in batches of several models, with a list of their numbers."""
        numbers = count()
        groups: dict[KeyedModel, list[tuple[list[int], Any]]] = {}
        for batch in batches:
            parts: dict[KeyedModel, list[tuple[int, Any]]] = {}
            for row in batch:
                parts.setdefault(self.model_for(split_pair(row)[0]), []).append(
                    (next(numbers), row)
                )
            for one, part in parts.items():
                indices, rows = zip(*part, strict=True)
                groups.setdefault(one, []).append((list(indices), list(rows)))
        return [(one.handler, groups[one]) for one in _loaded_first(groups, model)]

    def _run_one(
        self, one: KeyedModel, batch: Any, cache: ModelCache, inference_args: dict[str, Any] | None
    ) -> Any:
        with cache.acquire(one.identity, partial(_LoadedModel, one.handler)) as loaded:
            return call_model(one.handler, batch, loaded.model, copy_containers(inference_args))

    def with_no_batching(self, *, whole_results: bool = False) -> ModelHandler[Any, Any, Any]:
        changed: Any = super().with_no_batching(whole_results=whole_results)
        return changed.map_inner(  # type: ignore[no-any-return]
            lambda handler: with_unsplit_results(handler, whole_results)
        )

    def map_inner(self, function: Callable[[Any], Any]) -> Self:
        """Return a copy that has ``function(handler)`` instead of the handler of each mapping."""
        mappings = [KeyModelMapping(each.keys, function(each.mh)) for each in self.mappings]
        return self._replace(mappings=mappings, _by_key=None)

    def validate_whole_results(self) -> None:
        for handler in self._each():
            getattr(handler, "validate_whole_results", lambda: None)()

    def get_resource_hints(self) -> dict[str, Any]:
        """Return the hints of all handlers; raise `OptionError` if two disagree."""
        hints: dict[str, Any] = {}
        for handler in self._each():
            for name, value in handler.get_resource_hints().items():
                if hints.setdefault(name, value) != value:
                    raise OptionError(
                        f"The handlers of a KeyedModelHandler set the resource hint {name} to {hints[name]!r} and "
                        f"{value!r}. To fix this, override KeyedModelHandler.get_resource_hints()."
                    )
        return hints

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        for handler in self._each():
            handler.validate_inference_args(inference_args)

    def update_model_path(self, model_path: str | None = None) -> None:
        if model_path is not None:
            raise OptionError(
                "One path cannot update per-key models. To fix this, emit a list of KeyModelPathMapping."
            )

    def update_model_paths(self, model: ModelCache | None, model_paths: Any = None) -> None:
        """Set the paths of all models, and expire those in a cache that they replace. Used by Beam's transform.

        Args:
            model: The cache, or None.
            model_paths: A list of ``KeyModelPathMapping``, or None for no change.

        Raises:
            OptionError: The list doesn't name each key once.
        """
        if not model_paths:
            return
        replaced = {one.identity for one in self.models_by_key().values()}
        self._by_key = self.update_models(model_paths)
        self._n_path_updates += 1
        if model is not None:
            for identity in replaced - {one.identity for one in self._by_key.values()}:
                model.expire(identity)

    def count_path_updates(self) -> int:
        return self._n_path_updates + count_path_updates(self._each())

    def set_environment_vars(self) -> None:
        for handler in self._each():
            handler.set_environment_vars()

    def may_modify_examples(self) -> bool:
        return any(
            getattr(handler, "may_modify_examples", lambda: True)() for handler in self._each()
        )

    def may_join_threads(self) -> bool:
        return all(getattr(handler, "may_join_threads", bool)() for handler in self._each())

    def _each(self) -> list[Any]:
        return [mapping.mh for mapping in self.mappings]


def _loaded_first(models: Iterable[KeyedModel], cache: ModelCache) -> list[KeyedModel]:
    """Sort models so that loaded ones are called before they are evicted for others."""
    loaded = set(cache.names())
    return sorted(models, key=lambda model: model.identity not in loaded)


class _LoadedModel:
    """A model in the cache of a `PerKeyModelHandler`."""

    def __init__(self, handler: Any) -> None:
        self.model = handler.load_model()
        self.n_bytes = estimate_model_bytes(handler, self.model)

    def close(self) -> None:
        self.model = None


def count_path_updates(handlers: Iterable[Any]) -> int:
    """Return how often the paths of several handlers were updated. Handlers of other libraries don't count."""
    return sum(each.count_path_updates() for each in handlers if isinstance(each, ModelHandler))


def label_keys(keys: Iterable[Any]) -> dict[Any, str]:
    """Return a text for each key: its ``str``, or a longer one if keys share that.

    >>> label_keys(["a", 1, "1"])
    {'a': 'a', 1: '1', '1': "'1'"}
    """
    labels: dict[Any, str] = {}
    used: set[str] = set()
    for number, key in enumerate(keys):
        text = shorten_text(_to_text(key), 200)
        for label in (text, describe_value(key), f"{text}#{number}"):
            if label not in used:
                break
        labels[key] = label
        used.add(label)
    return labels


def _to_text(key: Any) -> str:
    try:
        return str(key)
    except Exception:
        return object.__repr__(key)


def with_unsplit_results(handler: Any, whole_results: bool) -> Any:
    """Return a handler with unsplit or split results. Handlers of other libraries are returned unchanged."""
    if returns_unsplit_results(handler) == whole_results or not isinstance(handler, ModelHandler):
        return handler
    return handler.with_no_batching(whole_results=whole_results)


def split_pair(element: Any) -> tuple[Any, Any]:
    """Return the key and the example of an element; raise `ElementError` unless it is a tuple of two items."""
    if not (isinstance(element, tuple) and len(element) == 2):
        raise missing_key_error(element)
    return element
