"""Functions that load and call the models in the worker processes of the engines.

The workers import this module, so it imports neither Beam nor an engine, and frameworks on demand.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

#: A function that predicts one number for each of several arrays.
Predict = Callable[[list[np.ndarray]], np.ndarray]


def load_rows(path):
    model = pickle.loads(Path(path).read_bytes())
    return lambda rows: model.predict(np.stack(rows)).astype(np.float64)


def load_images(path):
    import torch
    from torchvision.models import mobilenet_v3_small

    torch.set_num_threads(1)
    weights = torch.load(path, weights_only=True)
    model = mobilenet_v3_small(num_classes=100)
    model.load_state_dict(weights)
    model.eval()

    def predict(images):
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(images).reshape(-1, 3, 96, 96))
            return model(pixels)[:, 0].double().numpy()

    return predict


def load_classifier(config, path):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.set_num_threads(1)
    model = BertForSequenceClassification(BertConfig(**config))
    weights = torch.load(path, weights_only=True)
    model.load_state_dict({name.removeprefix("bert."): each for name, each in weights.items()})
    model.eval()

    def predict(sequences):
        with torch.inference_mode():
            tensors = [torch.tensor(tokens) for tokens in sequences]
            ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
            return model(ids, attention_mask=(ids != 0).long()).logits[:, 0].double().numpy()

    return predict


class PredictBatch:
    """Call a model on the batches of an actor of Ray."""

    def __init__(self, load, path):
        self._predict = load(path)

    def __call__(self, batch):
        return {"number": batch["number"], "value": self._predict(list(batch["features"]))}
