"""Where numbers are computed: accelerator copies and graphs, device and precision selection, this machine."""
