"""A trained policy at work: acting, evaluation, videos, export."""
