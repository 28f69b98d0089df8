"""Checks of a machine before a run: its devices, kernels, disks and clocks."""
