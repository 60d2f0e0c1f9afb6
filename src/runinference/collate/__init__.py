"""Turn examples into one batch, and the output of a batch into one result per example. Does not import Beam."""
