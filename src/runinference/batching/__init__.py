"""Batch elements: limits, batcher and adaptive batch size. Imports neither Beam nor a framework."""
