"""What a run costs on chips that are not there: the very step and decode of a run, compiled, counted and timed."""
