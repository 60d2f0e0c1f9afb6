"""Drive the DoFn of a step as a runner does, with models that record when they are loaded."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
from apache_beam.internal import pickler
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from runinference import ModelHandler
from runinference.handlers.repeatable_batch import RepeatableBatch
from runinference.transforms.batch_sources import BundleBatches
from runinference.transforms.infer_dofn import InferDoFn


class Weights:
    """A model of a given size."""

    alive: weakref.WeakSet[Weights] = weakref.WeakSet()

    def __init__(self, name: str, n_bytes: int) -> None:
        self.name = name
        self.array = np.ones(n_bytes, np.uint8)
        self.alive.add(self)


def alive_models() -> list[str]:
    gc.collect()
    return sorted(weights.name for weights in Weights.alive)


class RecordingHandler(ModelHandler):
    """Loads ``Weights`` by name, and records the loads and how many models were alive."""

    loads: list[str] = []
    max_alive = 0
    budget: dict[str, float] = {}  # different in each test
    lock = threading.Lock()

    def __init__(self, name: str, n_bytes: int = 1, **options) -> None:
        super().__init__(**options)
        self.name, self.n_bytes = name, n_bytes

    def load_model(self):
        model = Weights(self.name, self.n_bytes)
        with self.lock:
            RecordingHandler.loads.append(self.name)
            RecordingHandler.max_alive = max(RecordingHandler.max_alive, len(Weights.alive))
        return model

    def update_model_path(self, model_path=None):
        self.name = model_path or self.name

    def run_inference(self, batch, model, inference_args=None):
        assert model.name == self.name, "a handler called the model of another one"
        return [(x, model.name) for x in batch]


class Worker:
    """A thread of a worker process, with its own copy of the DoFn."""

    def __init__(self, config, source=BundleBatches) -> None:
        self.do_fn = pickler.loads(pickler.dumps(InferDoFn(config, source)))
        self.do_fn.setup()

    def bundle(self, *elements, update=None):
        """Return the results of a bundle, and the elements in the dead letters."""
        self.do_fn.start_bundle()
        outputs = []
        for element in elements:
            origin = WindowedValue(element, 0, (GlobalWindow(),))
            outputs += self.do_fn.process(element, origin, update) or ()
        outputs += self.do_fn.finish_bundle()
        dead = [out.value.value[0] for out in outputs if isinstance(out, TaggedOutput)]
        return [out.value for out in outputs if not isinstance(out, TaggedOutput)], dead

    def bundle_with_updates(self, elements):
        """Return the results of a bundle in which each element comes with a model update."""
        self.do_fn.start_bundle()
        outputs = []
        for element, update in elements:
            origin = WindowedValue(element, 0, (GlobalWindow(),))
            outputs += self.do_fn.process(element, origin, update) or ()
        return [out.value for out in (*outputs, *self.do_fn.finish_bundle())]

    def results(self, *elements, update=None):
        """Return the results of a bundle in which no element fails."""
        results, dead = self.bundle(*elements, update=update)
        assert not dead
        return results


def infer(engine, version, examples):
    """Return the outcomes of a batch that an engine runs in this thread."""
    batch = RepeatableBatch(examples, engine.needs_copies(len(examples)))
    return engine.infer(version, batch, engine.session.call)
