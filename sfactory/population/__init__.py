"""Many runs: sweeps over seeds and settings."""
