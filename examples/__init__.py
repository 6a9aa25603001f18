"""Programs to copy from. None of them is installed; they run from a source tree."""
