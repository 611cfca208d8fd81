"""Environment families, one file each, found by entry point; installed as `sfactory_envs`."""
