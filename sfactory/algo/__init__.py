"""Off-policy mathematics as pure tensor functions: torch only, no config, no processes, no state but what is
passed in."""
