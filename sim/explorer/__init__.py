"""One run as a page: what the explorer shows, recorded from a run and written into one self-contained file."""
