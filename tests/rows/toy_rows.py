"""Documents, a tokenizer of one id a character, and manifests, small enough to check by hand."""

import numpy as np

from m1jax.config import LearningRateConfig, StageConfig
from m1jax.rows.manifest import Manifest, RowFile, SourceRows
from m1jax.rows.packing import pack
from m1jax.text.documents import Document

EOS = 2
FIRST = 100


class ToyTokenizer:
    eos_id = EOS
    fingerprint = "toy"

    def __init__(self, vocab_size=60_000):
        self.vocab_size = vocab_size

    def encode_arrays(self, texts):
        return [np.array([ord(character) for character in text], np.uint32) for text in texts]


def document(index, length, source="a", language="en", domain="general"):
    """A document of `length` characters whose ids tell both the document and the place in it."""
    text = "".join(chr(FIRST + (index * 7919 + i * 31) % 40_000) for i in range(length))
    return Document(f"{source}/{index}", text, source, language, domain)


def with_parts(plain, *parts, **rest):
    """A document of parts in the place of a plain one."""
    return Document.of_parts(plain.id, parts, plain.source, plain.language, plain.domain, **rest)


def tokens_of(index, length):
    return [FIRST + (index * 7919 + i * 31) % 40_000 for i in range(length)] + [EOS]


def pack_lengths(folder, lengths_by_source, row_lengths, packing_window, seed=0, domains=None, **rest):
    """Packs documents of the given lengths; domains default to general."""

    def reader(source, lengths):
        domain = (domains or {}).get(source, "general")
        return lambda: (document(i, length, source, domain=domain) for i, length in enumerate(lengths))

    folder.mkdir(parents=True, exist_ok=True)
    sources = {source: reader(source, lengths) for source, lengths in lengths_by_source.items()}
    return pack(sources, ToyTokenizer(), folder, row_lengths, packing_window, seed, **rest)


def manifest(windows_by_source, domains=None, tokens=None):
    """A manifest without rows: {source: {row length: rows of each window}}."""
    sources = {}
    for name, by_length in windows_by_source.items():
        files = {}
        for length, windows in by_length.items():
            first = [0]
            for rows in windows:
                first.append(first[-1] + rows)
            files[length] = RowFile(first[-1], 1.0, tuple(first), f"sha-{name}-{length}")
        size = (tokens or {}).get(name, 1000)
        domain = (domains or {}).get(name, "general")
        sources[name] = SourceRows("en", domain, 10, 0, size, size - 10, size - 10.0, 4 * size, files)
    lengths = tuple(sorted({length for by_length in windows_by_source.values() for length in by_length}))
    return Manifest("toy", 60_000, 0, 10, lengths, sources)


def stage(name, row_length, global_batch, steps, mixture, **rest):
    tokens = row_length * global_batch * steps
    return StageConfig(
        **{"tokens": tokens, **rest},
        name=name,
        row_length=row_length,
        global_batch=global_batch,
        mixture=mixture,
        learning_rate=LearningRateConfig(start=1e-3, end=1e-3),
        rope_base=1e5,
    )
