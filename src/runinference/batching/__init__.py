"""Batch elements: the policy, the batcher and the adaptive batch size. Imports neither Beam nor a framework."""
