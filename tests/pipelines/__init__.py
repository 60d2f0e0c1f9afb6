"""Random pipelines, and a plain loop that says what must come out of each."""
