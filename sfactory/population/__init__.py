"""Many runs at once: sweeps over seeds and grids of settings."""
