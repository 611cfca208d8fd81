"""The processes: supervisor, samplers, inference, learner. One process, one file, one loop.

`step()` does the work and returns whether there was any; `run()` only waits and calls `step()`. Tests and the lockstep
mode call `step()` in one process: there is no second implementation of anything.
"""
