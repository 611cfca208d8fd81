"""The command line: one file per command, with its options, its help and its run.

Nothing heavy is imported at the top of these files: spawned workers import the console script's module again.
"""
