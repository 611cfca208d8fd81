"""Presets: one TOML file each, `FAMILY/NAME.toml`; installed as `sfactory_configs`."""
