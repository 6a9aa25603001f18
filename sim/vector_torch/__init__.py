"""The same search on torch, for a GPU. Torch is imported when a device is asked for, and not before."""
