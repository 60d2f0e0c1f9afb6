"""Hold models and call them: placement in processes, sessions, dynamic batching, routing and model watching."""
