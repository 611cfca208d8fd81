"""Networks: encoders, recurrent cores, action distributions, and the actor-critic that joins them. Torch
only."""
