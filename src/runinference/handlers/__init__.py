"""Model handlers: the base class, options, keys, per-key models, updates, error policies and local prediction."""
