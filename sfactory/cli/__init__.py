"""The command line: one file per command, with its options, its help and its run.

The top-level imports of these files load only the standard library and light modules of this package, because spawned
workers import the console script's module again.
"""
