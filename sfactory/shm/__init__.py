"""Shared memory: the arena, doorbells, the slot table, the trajectory schema, the weight mailbox.

Standard library and numpy only. No lock and no condition variable is shared between processes: a process that is
killed at any instruction leaves nothing behind that another process waits for.
"""
