"""Where ``apache_beam.ml.inference`` is wrong, and what is promised here: programs run with both packages.

``PYTHONPATH=tests python -m defects`` runs them and writes the tables of docs/coming-from-beam.md anew.
"""
