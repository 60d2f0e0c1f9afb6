"""Collate examples into a batch, and split the output of a batch into results. Does not import Beam."""
