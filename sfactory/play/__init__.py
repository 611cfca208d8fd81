"""Use a trained policy: act, evaluate, record videos, export."""
