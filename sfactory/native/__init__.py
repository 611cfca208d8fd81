"""Kernels in C for small networks on a CPU: passes, gradient of the loss, choice of actions."""
