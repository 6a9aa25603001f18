"""Random runs of the protocol model in lanes that all take the same turn, and any of them again with real objects."""
