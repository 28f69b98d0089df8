"""Which row a step reads: mixture, curriculum, its record, and the loader."""
