"""The device, the sizes and the files of the benchmarks on a GPU."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Setup:
    """Where the workloads run, and whether they are tiny.

    Attributes:
        name: A PyTorch device, such as ``"cuda"``, ``"cuda:1"`` or ``"cpu"``.
        tiny: Whether to use few elements and small models, for tests without a GPU.
    """

    name: str = "cuda"
    tiny: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device(self.name)

    @property
    def beam_name(self) -> str:
        """The device as Beam's handlers name it."""
        return "GPU" if self.device.type == "cuda" else "CPU"

    def choose(self, full, tiny):
        """Return the first value, or the second for tiny workloads."""
        return tiny if self.tiny else full


@functools.cache
def make_folder(name):
    """Return a new directory for the files of a model."""
    return Path(tempfile.mkdtemp(prefix=f"benchmark-{name}-"))


def save_weights(name, make_model):
    """Save a model with random weights and return the path of its file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model()
    path = make_folder(name) / "weights.pt"
    torch.save(model.state_dict(), path)
    return str(path)


def load_weights(path, make_model, device):
    """Create a model and load its weights to a device."""
    model = make_model()
    model.load_state_dict(torch.load(path, weights_only=True, mmap=True))
    return model.to(device).eval().requires_grad_(False)
