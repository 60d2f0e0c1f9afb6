"""Keep loaded models within a limit: the model cache and its memory budget. Imports no framework."""
