"""Several processes at one training, and independent jobs side by side."""
