"""Small models and rows for the tests of tables."""

import pickle

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from runinference.sklearn_inference import SklearnModelHandlerNumpy, SklearnModelHandlerPandas

PEOPLE = pd.DataFrame(
    {
        "age": [23, 35, 47, 51, 62, 29],
        "income": [1.5, 2.5, 3.25, 4.0, 2.0, 1.0],
        "city": ["Oslo", "Rome", "Oslo", "Lima", "Rome", "Lima"],
    }
)
LABELS = ["no", "no", "yes", "yes", "yes", "no"]


def save(model, folder, name="model.pkl"):
    path = folder / name
    path.write_bytes(pickle.dumps(model))
    return str(path)


def people_model():
    columns = ColumnTransformer(
        [
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("numbers", StandardScaler(), ["age", "income"]),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(PEOPLE, LABELS)


def people_handler(folder, **options):
    return SklearnModelHandlerPandas(save(people_model(), folder), **options)


def people_rows():
    return [{"id": i, **row} for i, row in enumerate(PEOPLE.to_dict("records"))]


def sum_handler(folder, **options):
    """A handler for arrays of columns a and b, whose prediction is a + 10 b."""
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    model = LinearRegression(fit_intercept=False).fit(rows, [0.0, 1.0, 10.0])
    return SklearnModelHandlerNumpy(save(model, folder, "sum.pkl"), **options)
