"""Steps of the pipeline in a separate package, to be installed on the workers."""

import numpy as np


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """Return pixel values between 0 and 1 instead of between 0 and 16."""
    return image / 16.0
