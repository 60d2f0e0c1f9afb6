"""Machine-learning inference as one step of an Apache Beam pipeline."""
