"""Random pipelines, the outcome that each must have, and two ways to run them."""
