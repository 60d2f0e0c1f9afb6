"""W7: bundles of 1 and 4 elements from 1, 8 and 12 threads, as in a streaming pipeline."""

import functools
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from apache_beam.internal import pickler
from apache_beam.ml.inference import base as beam_base
from apache_beam.ml.inference import pytorch_inference as beam_pytorch
from apache_beam.utils.windowed_value import WindowedValue

from benchmarks.harness import SAMPLED, Case, Outcome, batches
from benchmarks.w4_shuffled_results import number, value
from runinference import RunInference
from runinference.pytorch_inference import PytorchModelHandlerTensor

FEATURES, SCORES = 256, 64
ELEMENTS = {1: 960, 4: 1_440}  # by bundle size
P99 = "p99 latency in ms"


class Perceptron(torch.nn.Sequential):
    """A 256-1024-1024-64 MLP that counts how often it is loaded."""

    n_loaded = 0

    def __init__(self):
        super().__init__(
            torch.nn.Linear(FEATURES, 1_024),
            torch.nn.ReLU(),
            torch.nn.Linear(1_024, 1_024),
            torch.nn.ReLU(),
            torch.nn.Linear(1_024, SCORES),
        )
        Perceptron.n_loaded += 1


def cases(scale):
    torch.set_num_threads(1)
    model, path = save_model()
    options = {"state_dict_path": path, "model_class": Perceptron}
    for n_threads in (1, 8, 12):
        for size in (1, 4):
            n = max(192, int(ELEMENTS[size] * scale)) // 12 // size * 12 * size
            goals = {}
            if (n_threads, size) == (12, 4):
                goals = {
                    "ours of the ideal": ("≥", 0.5),
                    "ours ÷ Beam": ("≥", 2),
                    "models loaded, ours": ("≤", 1),
                    f"{P99}, Beam ÷ ours": ("≥", 8),
                }
            elif n_threads == 1:
                goals = {"ours ÷ Beam": ("≥", 1)}
            yield Case(
                workload="W7",
                variant=f"{n_threads} thread{'s' * (n_threads > 1)}, bundles of {size}",
                n=n,
                runs={
                    "limit": functools.partial(bare_loop, model, n, size),
                    "ours": Bundles(n, n_threads, size, OurRunner(options)),
                    "Beam": Bundles(n, n_threads, size, BeamRunner(options)),
                },
                check=functools.partial(check, model, n),
                goals=goals,
                compared=[P99],
            )


@functools.cache
def examples(n):
    values = np.random.default_rng(0).normal(size=(n, FEATURES)).astype(np.float32)
    return [torch.from_numpy(row.copy()) for row in values]


@functools.cache
def save_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Perceptron().eval().requires_grad_(False)
    path = Path(tempfile.mkdtemp(prefix="benchmark-")) / "perceptron.pt"
    torch.save(model.state_dict(), path)
    return model, str(path)


def bare_loop(model, n, size):
    outcome = Outcome()
    with torch.inference_mode():
        for batch in batches(examples(n), size):
            features = torch.stack(batch)
            outcome.add_batch(features[:, 0], model(features)[:, 0])
    return outcome


class OurRunner:
    """Process a bundle with this library's DoFn, as a runner does."""

    def __init__(self, options):
        transform = RunInference(PytorchModelHandlerTensor(**options))
        self.do_fn = transform._make_dofn()

    @staticmethod
    def bundle(do_fn, elements):
        do_fn.start_bundle()
        outputs = []
        for element in elements:
            outputs.extend(do_fn.process(element, WindowedValue(element, 0, ())) or ())
        outputs.extend(do_fn.finish_bundle())
        return [output.value for output in outputs]


class BeamRunner:
    """Process a bundle with Beam's DoFn. Its input is a batch, here all elements of the bundle."""

    def __init__(self, options):
        handler = beam_pytorch.PytorchModelHandlerTensor(**options)
        self.do_fn = beam_base._RunInferenceDoFn(handler, time, None)

    @staticmethod
    def bundle(do_fn, elements):
        do_fn.start_bundle()
        outputs = list(do_fn.process(elements, None, None))
        do_fn.finish_bundle()
        return outputs


class Bundles:
    """Process bundles in threads that each have their own DoFn, as in a worker."""

    def __init__(self, n, n_threads, size, runner):
        self._bundles = batches(examples(n), size)
        self._bundle = runner.bundle
        pickled = pickler.dumps(runner.do_fn)
        before = Perceptron.n_loaded
        self._do_fns = [pickler.loads(pickled) for _ in range(n_threads)]
        for do_fn in self._do_fns:
            do_fn.setup()
        self._n_models = Perceptron.n_loaded - before

    def __call__(self):
        remaining = iter(self._bundles)
        lock = threading.Lock()
        outcomes = [Outcome() for _ in self._do_fns]
        seconds = [[] for _ in self._do_fns]

        def work(thread):
            while True:
                with lock:
                    bundle = next(remaining, None)
                if bundle is None:
                    return
                start = time.perf_counter()
                results = self._bundle(self._do_fns[thread], bundle)
                seconds[thread].append(time.perf_counter() - start)
                for result in results:
                    if outcomes[thread].n % SAMPLED == 0:
                        outcomes[thread].sample.append((result.example, result.inference))
                    outcomes[thread].add(number(result.example), value(result.inference))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(self._do_fns))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = Outcome()
        for outcome in outcomes:
            total.add_outcome(outcome)
        p99 = float(np.percentile(np.concatenate(seconds), 99))
        total.metrics = {P99: 1_000 * p99, "models loaded": self._n_models}
        return total


@functools.cache
def expected(model, n):
    with torch.inference_mode():
        return model(torch.stack(examples(n)))[:, 0]


def check(model, n, contender, outcome):
    """Check that every example came out once, with the correct scores."""
    outcome.check([*map(number, examples(n))], expected(model, n), tolerance=1e-5)
    with torch.inference_mode():
        for example, inference in outcome.sample:
            np.testing.assert_allclose(inference, model(example[None])[0], rtol=1e-5, atol=1e-5)
