"""Checkpoints as streams: read and written tensor by tensor."""
