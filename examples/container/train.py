"""Train a classifier of handwritten digits, and write it to a file.

python examples/container/train.py models/digits.pickle
"""

import pickle
import sys
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

path = Path(sys.argv[1])
images, labels = load_digits(return_X_y=True)
model = LogisticRegression(max_iter=200).fit(images[:1000] / 16.0, labels[:1000])
path.parent.mkdir(parents=True, exist_ok=True)
path.write_bytes(pickle.dumps(model))
