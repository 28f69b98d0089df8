"""Held-out documents are measured on the targets, and with the weights, that training would have of them."""

import jax
import numpy as np
import pytest

from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.evaluate import heldout
from m1jax.objectives.next_token import NextToken
from m1jax.parallel import mesh as meshes
from m1jax.rows.expand import expand
from m1jax.rows.manifest import open_stores
from m1jax.rows.packing import pack
from m1jax.text.conversations import Conversation, checked
from m1jax.text.documents import DOCUMENT_SCHEMA, WHOLE, Document, Part, Table
from m1jax.text.rendering import Renderer
from m1jax.tokenizer import chat
from tests.parallel import toy
from tests.tokenizer.chat.chat_tokenizers import OURS, talk

S = 64
TALKS = (
    (("user", "Is fever a symptom?"), ("assistant", "是。"), ("user", "Why? "), ("assistant", "It is.")),
    (("system", "发热"), ("user", "39 degrees"), ("assistant", "fever")),
    (("user", "cough?"), ("assistant", "no")),
)


def documents_of(*weights):
    """The conversations as documents; `weights` are those of their first answers."""
    talks = [talk(*turns) for turns in TALKS]
    for messages, weight in zip(talks, weights, strict=False):
        next(message for message in messages if message["role"] == "assistant")["weight"] = weight
    found = [Conversation(f"a#{i}", *checked(some), "a", "en", "text", shard="a") for i, some in enumerate(talks)]
    return list(Renderer(chat.of(OURS), OURS, S).documents(found))


def write(folder, *documents):
    with Table(folder / "heldout" / "a.parquet", DOCUMENT_SCHEMA) as table:
        for document in documents:
            table.write(document, 1)
    return folder


def batch_of(folder, documents, rows):
    """The rows that training would read, and so many empty ones that there are `rows`."""
    manifest = pack({"a": lambda: iter(documents)}, OURS, folder, [S], 64, 0)
    (store,) = open_stores(folder, manifest, [(S, "a")]).values()
    found = expand([store[i] for i in range(len(store))])
    return {name: np.pad(array, ((0, rows - len(array)), (0, 0))) for name, array in found.items()}


@pytest.mark.parametrize("mean", ["tokens", "conversations"])
def test_the_loss_is_that_of_training_on_the_same_conversations(tmp_path, mean):
    documents = documents_of(0.5, 3, 1)
    config = toy.config("model.num_layers=2", f"train.validate_tokens={10**6}", f"train.loss_mean={mean}")
    mesh = meshes.make(MeshConfig(), jax.devices()[:1])
    objective = NextToken(config, mesh)
    params = jax.jit(objective.initialise)()
    terms = jax.jit(objective.terms)(params, batch_of(tmp_path / "rows", documents, 4), toy.SCALARS)
    stage = config.stages[0]
    assert (stage.row_length, stage.rope_base) == (S, toy.BASE)
    found = heldout.measure(config, mesh, heldout.encoded(write(tmp_path, *documents), OURS, S), OURS)(params, stage)
    assert found["heldout_loss"] == pytest.approx(float(terms.loss.value), rel=1e-5)
    assert found["heldout_loss/a"] == found["heldout_loss"]
    texts = ((0.5, "是。"), (1, "It is."), (3, "fever"), (1, "no"))
    size = sum(weight * len(text.encode()) for weight, text in texts)
    if mean == "tokens":
        assert found["heldout_bits_per_byte"] == pytest.approx(float(terms.loss.sum) / np.log(2) / size, rel=1e-5)
    else:
        assert float(terms.loss.denominator) == len(documents)


def test_targets_and_weights_are_those_of_rows(tmp_path):
    documents = documents_of(0, 0.5, 2)
    batch = batch_of(tmp_path / "rows", documents, 3)
    rows = {}
    for row in range(3):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            mine = batch["segment_ids"][row] == segment
            ids = batch["tokens"][row][mine].tolist()
            rows[tuple(ids)] = batch["weights"][row][mine][:-1].tolist()
    found = heldout.encoded(write(tmp_path, *documents), OURS, S)["a"]
    assert {tuple(one.tokens.tolist()): one.weights[1:].tolist() for one in found} == rows
    assert all(one.whole for one in found) and len(found) == 3


def test_what_is_text_is_measured_as_text(tmp_path):
    """Parts that are not learned too: their weight is 0, and a document of text may be cut."""
    parts = Document.of_parts("a#1", [Part("fever? ", weight=0.0), Part("yes")], "a", "en", "text")
    plain = Document("a#2", "fever", "a", "en", "text")
    first, second = heldout.encoded(write(tmp_path, parts, plain), OURS, S)["a"]
    assert first.tokens.tolist() == [*OURS.encode("fever? "), *OURS.encode("yes"), OURS.eos_id]
    assert first.weights.tolist() == [0.0] * len(OURS.encode("fever? ")) + [1.0] * (len(OURS.encode("yes")) + 1)
    assert second.tokens.tolist() == [*OURS.encode("fever"), OURS.eos_id] and second.weights.all()
    assert not first.whole and not second.whole


def test_a_conversation_that_rows_do_not_have_is_not_measured(tmp_path):
    """It was written for longer rows; packing sets it aside, and it is never cut inside an answer."""
    documents = documents_of()
    sizes = [len(one.tokens) for one in heldout.encoded(write(tmp_path, *documents), OURS, S)["a"]]
    found = heldout.encoded(tmp_path, OURS, max(sizes) - 1)["a"]
    assert [len(one.tokens) for one in found] == [size for size in sizes if size < max(sizes)]
    with pytest.raises(UserError, match="no document that fits a row of 2 tokens"):
        heldout.encoded(tmp_path, OURS, 2)


def test_nothing_held_out_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"heldout is missing, so nothing is held out: set data\.heldout_share above 0"):
        heldout.encoded(tmp_path, OURS, S)


def test_ids_of_another_tokenizer_are_refused(tmp_path):
    write(tmp_path, Document("a#1", "fever", "a", "en", "text", columns={WHOLE: 1}))
    (tmp_path / "m1jax.json").write_text('{"kind": "corpus", "key": "k", "tokenizer": "other"}')
    with pytest.raises(UserError, match=rf"were written with tokenizer other, but the run's is {OURS.fingerprint}"):
        heldout.encoded(tmp_path, OURS, S)
