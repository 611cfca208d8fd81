"""Off-policy mathematics as pure tensor functions.

Imports torch only: no configuration, no processes; all state is passed in.
"""
