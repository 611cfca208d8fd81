"""What the verbs do that are not `train` and `resume`: one file for each, named in `cli.VERBS`.

Each takes the words behind its verb, and returns an exit code through `exits.last_line` or raises `exits.Ended`.
Nothing heavy is imported at the top: spawned workers import the command's module anew.
"""
