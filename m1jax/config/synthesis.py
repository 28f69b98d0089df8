"""What `m1 synthesize` makes: how many questions, of what, and which share of the entities is held out."""

from dataclasses import dataclass

from m1jax.config.stages import bounded


@dataclass(frozen=True)
class SynthesisConfig:
    """Instruction data made from ontologies (docs/synthesis.md)."""

    sources: tuple[str, ...] = (
        "mondo", "uberon", "cell-ontology", "hpo", "hpo-annotations", "icd10cm", "icd10-zh", "gcide-medical",
    )  # fmt: skip
    """Graphs that are read: names of m1jax.text.synthesis.ontologies.ONTOLOGIES."""
    kinds: tuple[str, ...] = ()
    """Kinds of question that are made; empty: every kind of the templates."""
    items_per_kind: int = bounded(1, default=1200)
    """Most conversations of a kind, over all its templates and sources."""
    test_items_per_kind: int = bounded(0, default=150)
    """Most test questions of a kind."""
    test_share: float = bounded(0.0, default=0.05)
    """Share of each source's entities that are held out of training in every form."""
