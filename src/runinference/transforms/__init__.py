"""The RunInference transform: its DoFns, coders, metrics, dead letters and file watching."""
