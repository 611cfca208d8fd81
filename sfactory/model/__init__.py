"""Networks: encoders, recurrent cores, action distributions, and the actor-critic that combines them.

Imports torch only.
"""
