"""A lifecycle of one's own, from its table to a proof: see README.md in this folder."""
