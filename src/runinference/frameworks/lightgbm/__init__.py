"""Check LightGBM model files."""
