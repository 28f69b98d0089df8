"""The mesh and the one table that lays arrays over it."""
