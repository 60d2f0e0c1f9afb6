"""The workloads by code, and their names. Each is imported on demand, because frameworks are slow to import."""

from importlib import import_module
from importlib.util import find_spec

MODULES = {
    "start": "start",
    "sizes": "batch_sizes",
    "W1": "w1_rows",
    "W1c": "w1c_arrays_of_rows",
    "W2": "w2_images",
    "W3": "w3_token_sequences",
    "W4": "w4_shuffled_results",
    "W5": "w5_models_per_key",
    "W6": "w6_requests",
    "W7": "w7_small_bundles",
    "W7d": "w7d_batches_across_bundles",
    "W8": "w8_bad_rows",
    "W9": "w9_trees",
    "W10": "w10_texts",
    "W11": "w11_accelerator",
    "W12": "w12_worker_threads",
    "W13": "w13_tables",
    "growth": "growth",
    "memory": "memory",
}

#: Names for users, who don't know the codes. The variant of a case follows the name.
NAMES = {
    "start": "Startup",
    "sizes": "Batch sizes",
    "W1": "Single rows",
    "W1c": "Rows in arrays",
    "W2": "Images",
    "W3": "Token sequences",
    "W4": "Large outputs",
    "W5": "Per-key models",
    "W6": "Remote model",
    "W7": "Small bundles",
    "W7d": "Batches across bundles",
    "W8": "Rows that fail",
    "W9": "XGBoost",
    "W10": "Hugging Face",
    "W11": "Simulated accelerator",
    "W12": "Worker threads",
    "W13": "Tables",
    "growth": "Growth",
    "memory": "Memory",
}

#: Frameworks that a workload needs, by the names of their modules.
FRAMEWORKS = {
    "start": [
        "sklearn",
        "torch",
        "skl2onnx",
        "onnxruntime",
        "xgboost",
        "tensorflow",
        "transformers",
    ],
    "sizes": ["torch", "torchvision"],
    "W1": ["sklearn"],
    "W1c": ["sklearn", "pandas"],
    "W2": ["torch", "torchvision"],
    "W3": ["torch", "transformers"],
    "W4": ["torch"],
    "W5": ["sklearn"],
    "W6": [],
    "W7": ["torch"],
    "W7d": ["torch"],
    "W8": ["sklearn"],
    "W9": ["sklearn", "xgboost"],
    "W10": ["torch", "transformers"],
    "W11": ["torch", "torchvision"],
    "W12": ["torch", "torchvision"],
    "W13": ["sklearn", "pandas"],
    "growth": ["sklearn"],
    "memory": [],
}


def missing_packages(workload):
    """Return the frameworks of a workload that are not installed."""
    return [name for name in FRAMEWORKS[workload] if find_spec(name) is None]


def cases(workload, scale):
    """Return the cases of a workload with a fraction `scale` of its elements."""
    return import_module(f"benchmarks.{MODULES[workload]}").cases(scale)
