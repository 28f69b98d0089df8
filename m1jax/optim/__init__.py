"""Schedules, clipping and the optimiser, all as optax transformations."""
