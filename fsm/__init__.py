"""The protocol of resumable block transfer, pure: tables, kernel, messages, receiver, sender, block ledger.

Nothing in this package does I/O. There is no clock, no randomness, no logging and no socket: events
go in, effects come out, and whoever drives it supplies the time. That is what lets one and the same
code serve the simulator, the exhaustive checker and a production worker.
"""
