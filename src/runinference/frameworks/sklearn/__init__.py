"""Load scikit-learn estimators."""
