"""Whether what was seen is what the protocol can do: an acceptor over events, of real workers or of a simulated run."""
