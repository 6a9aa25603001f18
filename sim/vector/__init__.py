"""The exact search of models on arrays: every reachable state, a whole level at once."""
