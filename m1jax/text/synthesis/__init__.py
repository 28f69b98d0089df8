"""Instruction data from ontologies: a graph of entities, templates of questions, and a split by entity."""
