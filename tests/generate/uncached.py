"""A small model of a global and a window layer, and what it says without a cache: whole forward passes."""

import functools

import numpy as np

from m1jax import model
from m1jax.generate import LanguageModel
from tests.model import small

LENGTH = 128
CONFIG = small.config(num_layers=2, vocab_size=432)


@functools.cache
def parameters():
    return model.create(CONFIG, 0)[1]


@functools.cache
def language_model():
    return LanguageModel(CONFIG, small.BASE, parameters())


def logits(row):
    """(V,) after the last of `row`'s tokens, padded to one length, by the decoder's forward pass alone."""
    padded, segments = np.zeros((1, LENGTH), int), np.zeros((1, LENGTH), np.int32)
    padded[0, : len(row)], segments[0, : len(row)] = row, 1
    graphdef = model.abstract(CONFIG).graphdef
    return np.asarray(small.logits(graphdef, parameters(), padded, segments))[0, len(row) - 1]


def greedy(row, count):
    """The likeliest continuation."""
    row = list(row)
    for _ in range(count):
        row.append(int(np.argmax(logits(row))))
    return row[len(row) - count :]
