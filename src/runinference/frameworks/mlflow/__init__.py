"""Load and call MLflow models."""
