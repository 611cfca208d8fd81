"""The worker processes: samplers, inference workers, learner, evaluator. One file and one loop per process.

`step()` does the work and returns whether there was any; `run()` only waits and calls `step()`. Tests and the lockstep
mode call `step()` in one process, so there is no second implementation.
"""
