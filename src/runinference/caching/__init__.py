"""Model cache with LRU eviction, and memory budgets."""
