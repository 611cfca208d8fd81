"""The run folder on disk: settings, checkpoints, the recorder that writes it and the reader."""
