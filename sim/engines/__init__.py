"""The engines: simulate (sample), check (exhaust), replay, shrink. One file each; all speak `sim.engines.result`."""
