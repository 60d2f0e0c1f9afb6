"""Load and call the models of each framework."""
