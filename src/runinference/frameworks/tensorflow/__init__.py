"""Load and call TensorFlow and Keras models."""
