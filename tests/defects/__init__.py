"""Cases where `apache_beam.ml.inference` misbehaves, run with both packages.

`PYTHONPATH=tests python -m defects` runs them and updates the tables of docs/coming-from-apache-beam.md.
"""
