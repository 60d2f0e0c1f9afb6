"""Small Keras models for tests."""

from __future__ import annotations

import os

import keras
import numpy as np
import tensorflow as tf

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
ONES = np.ones(2)


def dense(factor=1.0, units=3):
    """Build a dense layer whose weights are all the same."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model.set_weights([np.full(w.shape, factor) for w in model.get_weights()])
    return model


def expected(factor=1.0):
    return np.repeat(ROWS.sum(axis=1, keepdims=True) * factor + factor, 3, axis=1)


def arithmetic(outputs=lambda total, difference: [total, difference]):
    """Build a model that returns the sum and the difference of its inputs a and b."""
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], outputs(keras.layers.Add()([a, b]), keras.layers.Subtract()([a, b])))


def by_name(total, difference):
    return {"sum": total, "difference": difference}


class Twice(keras.layers.Layer):
    """A custom layer, which a file names but doesn't contain."""

    def call(self, x):
        return 2 * x


class Scaled(keras.Model):
    """A model without declared inputs, whose call takes an extra argument."""

    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, x, scale=1.0):
        return self.layer(x["left"] + x["right"]) * scale


def scaled():
    model = Scaled()
    model({"left": tf.ones((1, 2)), "right": tf.ones((1, 2))})
    return model


def save_models(folder):
    """Save a model in every format that the handlers load."""
    dense().save(folder / "m.keras")
    dense().save(folder / "m.h5")
    dense().save_weights(folder / "m.weights.h5")
    dense().export(folder / "m", verbose=False)
    dense(10.0).save(folder / "tenfold.keras")
    dense(10.0).save_weights(folder / "tenfold.weights.h5")
    dense(10.0).export(folder / "tenfold", verbose=False)
    arithmetic().save(folder / "list.keras")
    arithmetic(by_name).save(folder / "dict.keras")
    arithmetic(by_name).export(folder / "dict", verbose=False)
    embedding = [keras.Input((2,), dtype="int32"), keras.layers.Embedding(10, 3)]
    keras.Sequential(embedding).save(folder / "embedding.keras")
    keras.Sequential(embedding).export(folder / "embedding", verbose=False)
    keras.Sequential([keras.Input((4,)), Twice()]).save(folder / "twice.keras")
    lambdas = keras.Sequential(
        [keras.Input((4,)), keras.layers.Lambda(lambda x: os.getpid() + x, name="spy")]
    )
    lambdas.save(folder / "lambda.keras")
    lambdas.save(folder / "lambda.h5")
    return folder


def numbers(results):
    return np.array([result.inference.numpy() for result in results])
