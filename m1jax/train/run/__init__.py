"""A run as an operator sees it: reports, liveness, faults, goodput and history."""
