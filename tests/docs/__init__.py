"""Hold the documentation to its word: what is copied runs, what is shown was printed."""
