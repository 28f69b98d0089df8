"""A model's structure as the programs of generation are told of it."""

from typing import Any

from flax import nnx

from m1jax.model import Decoder


class Structure:
    """A graphdef whose hash is computed once.

    Every call of a compiled program hashes its static arguments; a graphdef hashes each of its nodes every time, which
    for many unrolled layers takes as long as a decoding step of a small model.
    """

    def __init__(self, graphdef: Any):
        self.graphdef, self._hash = graphdef, hash(graphdef)

    def decoder(self, parameters: Any) -> Decoder:
        """The model with these numbers."""
        decoder: Decoder = nnx.merge(self.graphdef, parameters)
        return decoder

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Structure) and self._hash == other._hash and self.graphdef == other.graphdef
