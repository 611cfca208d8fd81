"""The supervisor process: start, watch, restart and stop the workers; or run them in one process (lockstep)."""
