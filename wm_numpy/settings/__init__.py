"""Every number of a run: its configuration and the presets. It imports no other room."""
