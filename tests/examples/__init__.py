"""The example programs, run as a reader would run them."""
