"""Handlers for subprocesses, which import this module instead of that of a test with all of its packages."""

from __future__ import annotations

import os
import time

from runinference import ModelHandler


class Crashing(ModelHandler):
    """Ends its process on one element."""

    def load_model(self):
        return os.getpid()

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            os._exit(11)
        if 14 in batch:
            raise ValueError("fourteen")
        return [(element, model) for element in batch]


class HangingChild(ModelHandler):
    def load_model(self):
        return None

    def run_inference(self, batch, model, inference_args=None):
        if 13 in batch:
            time.sleep(600)
        return batch
