"""Hooks of a run: journal, progress bar, validation, moving average, trackers."""
