"""Checkpoints of a run: in its folder, and emergency ones on every machine."""
