"""Conversations in packed rows: never cut, and to the model as if each were alone."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import kernels, model
from m1jax.errors import UserError
from m1jax.objectives.next_token import of_conversations
from m1jax.rows.expand import expand
from m1jax.rows.manifest import open_stores
from m1jax.rows.packing import pack
from m1jax.text.conversations import Conversation, checked
from m1jax.text.documents import WHOLE, Part
from m1jax.text.rendering import Renderer
from m1jax.tokenizer import chat
from tests.model import small
from tests.rows import toy_rows
from tests.tokenizer.chat.chat_tokenizers import OURS, talk

S = 144
MEANS = ("tokens", "conversations")
TALKS = (
    (("user", "Is fever a symptom?"), ("assistant", "是。"), ("user", "Why? "), ("assistant", "It is.")),
    (("system", "发热"), ("user", "39 degrees"), ("assistant", "fever")),
    (("user", "cough?"), ("assistant", "no")),
)


def rows_of(folder, documents, tokenizer, row_length):
    manifest = pack({"a": lambda: iter(documents)}, tokenizer, folder, [row_length], 64, 0)
    (store,) = open_stores(folder, manifest, [(row_length, "a")]).values()
    return [store[i] for i in range(len(store))], manifest.sources["a"]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(8, 24))
@settings(max_examples=60, deadline=None)
def test_whole_documents_are_never_cut(tmp_path_factory, sizes, row_length):
    """Each in one row, in as few rows as best fit needs; longer ones are set aside with their reason."""
    folder = tmp_path_factory.mktemp("whole")
    documents = [
        toy_rows.with_parts(plain, Part(plain.text), columns={WHOLE: 1})
        for plain in (toy_rows.document(i, size) for i, size in enumerate(sizes))
    ]
    fitting = [size + 1 for size in sizes if size + 1 <= row_length]
    if not fitting:
        with pytest.raises(UserError, match=f"every document is longer than a row of {row_length} tokens"):
            rows_of(folder, documents, toy_rows.ToyTokenizer(), row_length)
        return
    rows, source = rows_of(folder, documents, toy_rows.ToyTokenizer(), row_length)
    found = collections.Counter(number for row in rows for number in row.documents.tolist())
    assert set(found.values()) == {1} and not any(row.offsets.any() for row in rows)
    assert sorted(length for row in rows for length in row.lengths.tolist()) == sorted(fitting)
    assert all(row.lengths.sum() <= row_length for row in rows)
    assert (source.documents, source.rejected) == (len(fitting), len(sizes) - len(fitting))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A row of three conversations, as a batch, and where each of them begins and ends."""
    conversations = [
        Conversation(f"a#{i}", *checked(talk(*turns)), "a", "en", "general", shard="a") for i, turns in enumerate(TALKS)
    ]
    documents = list(Renderer(chat.of(OURS), OURS, S).documents(conversations))
    (row,), _ = rows_of(tmp_path_factory.mktemp("rows"), documents, OURS, S)
    ends = np.cumsum(row.lengths).tolist()
    assert len(ends) == 3 and ends[-1] < S
    return expand([row]), list(zip([0, *ends], ends, strict=False))


@pytest.fixture(scope="module")
def gradients():
    """(batch) → gradient of the sum over targets with respect to each token's embedding, and to the parameters."""
    graphdef, params = model.create(small.config(vocab_size=OURS.vocab_size, num_layers=2, window=7), 0)

    def loss(shifts, params, batch):
        decoder = nnx.merge(graphdef, params)
        rows = kernels.Rows(positions=batch["positions"], segment_ids=batch["segment_ids"])
        states = decoder.run(decoder.embedded(batch["tokens"]) + shifts, rows, small.BASE)
        return decoder.cross_entropy(states, batch["targets"], batch["weights"], chunk=1024).loss

    program = jax.jit(jax.grad(loss, argnums=(0, 1)))

    def of(batch):
        shifts, moved = program(jnp.zeros((1, S, small.config().hidden)), params, batch)
        return np.asarray(shifts)[0], moved

    return of


def weighed(batch, mean):
    """The batch with the weights that `train.loss_mean` gives its targets."""
    if mean == "tokens":
        return batch
    return {**batch, "weights": np.asarray(of_conversations(batch["weights"], batch["segment_ids"])[0])}


def only(batch, begin, end, at):
    """The tokens from `begin` to `end`, all other places being padding; their first is at place `at`."""
    found = {}
    for name, array in batch.items():
        found[name] = np.zeros_like(array)
        found[name][0, at : at + end - begin] = array[0, begin:end]
    return found


@pytest.mark.parametrize("mean", MEANS)
def test_no_gradient_goes_from_one_conversation_to_another(packed, gradients, mean):
    """Exactly zero, not small: only tokens of a conversation move its own loss, and those before its last target do."""
    batch, borders = packed
    for begin, end in borders:
        mine = (np.arange(S) >= begin) & (np.arange(S) < end)
        shifts, _ = gradients(weighed({**batch, "weights": batch["weights"] * mine}, mean))
        assert np.all(shifts[~mine] == 0.0)
        assert np.all(np.abs(shifts[begin : end - 1]).max(-1) > 1e-6) and np.all(shifts[end - 1] == 0.0)


@pytest.mark.parametrize("mean", MEANS)
def test_gradients_of_a_packed_row_are_those_of_its_conversations_apart(packed, gradients, mean):
    """At its place, every bit: neighbours are to a conversation as padding is.

    At the beginning of a row of its own, and in sums over conversations, float32 adds in another order.
    """
    batch, borders = packed
    together, moved = gradients(weighed(batch, mean))
    apart = []
    for begin, end in borders:
        alone = weighed(only(batch, begin, end, begin), mean)
        assert np.array_equal(gradients(alone)[0][begin:end], together[begin:end])
        shifts, some = gradients(weighed(only(batch, begin, end, 0), mean))
        assert np.abs(shifts[: end - begin] - together[begin:end]).max() < 1e-5 * np.abs(together).max()
        apart.append(some)
    total = jax.tree.map(lambda *parts: sum(parts), *apart)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moved))
    assert small.largest_difference(moved, total) < 1e-5 * scale
