"""Mathematics of learning and of matches as pure functions, of tensors or of numbers.

Imports torch at most: no configuration, no processes; all state is passed in.
"""
