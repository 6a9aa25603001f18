"""Workers embedded in a scheduler loop: see README.md in this folder."""
