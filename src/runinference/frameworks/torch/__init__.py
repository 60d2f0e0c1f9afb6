"""Load, place, compile and call PyTorch models."""
