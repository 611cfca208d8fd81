"""Device layer: accelerator copies and graphs, device and precision selection, properties of this machine."""
