"""Comparison with Ray Data, Spark, and Daft, in an environment with these packages.

    PYTHONPATH=tests python -m benchmarks.peers

All contenders compute the rows, images, and token sequences of W1 to W3 with the same models. The other engines
read Parquet files and return one number per element, and run on all CPU cores. The loop and this library read the
elements from memory.
"""
