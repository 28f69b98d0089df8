"""Long context: what stands around a conversation, which conversations, and what is learned of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import model
from m1jax.config import file as config_file
from m1jax.config.schema import LongContextConfig
from m1jax.errors import UserError
from m1jax.evaluate.scoring import BATCH_KEYS, RowScorer
from m1jax.evaluate.trained import target_logprobs
from m1jax.kernels.reference import prepared
from m1jax.rows.expand import expand
from m1jax.rows.manifest import document_ids, open_stores
from m1jax.rows.packing import pack
from m1jax.text.conversations import Conversation, checked
from m1jax.text.documents import DOCUMENT_SCHEMA, Document, Part, Rejected, Table, read_documents
from m1jax.text.passages import passages
from m1jax.text.rendering import Renderer
from m1jax.text.set_aside import fault, screen
from m1jax.text.surroundings import Surrounded, Surroundings, read_text
from m1jax.tokenizer import chat
from tests.model import small
from tests.tokenizer.chat import chat_tokenizers as made
from tests.tokenizer.chat.chat_tokenizers import OURS

CHAT = chat.of(OURS)
TALK = (("system", "Be brief."), ("user", "Is fever a symptom?"), ("assistant", "是。"))
MORE = (("user", "Why? "), ("assistant", "It is."))


def conversation(*turns, number=1):
    given_turns = [{"role": role, "content": text} for role, text in turns]
    return Conversation(f"a#{number}", *checked(given_turns), "a", "en", "general", shard="a")


def some(count):
    return [conversation(("user", f"What is {i}?"), ("assistant", f"{i} it is."), number=i) for i in range(count)]


def documents(count=4, sentences=12):
    for i in range(count):
        text = " ".join(f"The patient {i} coughs {j} times." for j in range(sentences))
        yield Document(f"{i}.txt", f"{text}\n\n患者{i}发热。\n", "books", "en", "general")


def around(items, length=400, share=1.0, read=documents, tokenizer=OURS):
    counts = Surrounded()
    found = list(Surroundings(read, chat.of(tokenizer), tokenizer, length, share, counts).around(items))
    return found, counts


def rendered(items, length, tokenizer=OURS):
    return list(Renderer(chat.of(tokenizer), tokenizer, length).documents(items))


def question(found):
    return found.messages[found.first_question]["content"]


@pytest.mark.parametrize("turns", [TALK, TALK[1:], (*TALK, *MORE)])
def test_text_stands_before_and_behind_the_first_question_and_fills_the_length(turns):
    talk = conversation(*turns)
    (found,), counts = around([talk])
    asked = next(text for role, text in turns if role == "user")
    text = question(found)
    own, last = [], 0
    for start, end, origin in found.inserted:
        assert origin in {f"books/{i}.txt" for i in range(4)}
        own.append(text[last:start])
        last = end
    assert "".join([*own, text[last:]]) == asked
    # Empty lines stand between it and the text, and between documents.
    assert f"\n\n{asked}\n\n" in f"\n\n{text}\n\n" and "\n\n\n" not in text
    # Nothing else of the conversation has changed.
    others = [(m["role"], m["content"]) for i, m in enumerate(found.messages) if i != found.first_question]
    assert others == [turn for turn in turns if turn[1] != asked] and found.weights == talk.weights
    size = len(CHAT.encode(found.messages))
    assert 400 - 40 < size <= 400
    assert counts == Surrounded(1, 0, size - len(CHAT.encode(talk.messages)), len(found.inserted), 1)


def test_documents_follow_one_another_and_begin_again():
    found, counts = around(some(12), length=300)
    told = "".join(question(one)[start:end] for one in found for start, end, _ in one.inserted)
    numbers = [int(word) for word in told.split() if word.isdigit()]
    expected = itertools.cycle(n for i in range(4) for j in range(12) for n in (i, j))
    # A passage that did not fit when encoded with the others may be missing.
    missing = 0
    for number in numbers:
        while next(expected) != number:
            missing += 1
    assert missing < len(numbers) / 20 and counts.readings > 1


def test_which_conversations_and_where_is_decided_by_what_they_say():
    talks = some(200)
    half, counts = around(talks, share=0.5)
    chosen = {talk.id for talk in half if talk.inserted}
    assert 70 < len(chosen) < 130 and len(chosen) == counts.conversations
    renamed = [Conversation(f"b#{i}", talk.messages, talk.weights, "b", "en", "x") for i, talk in enumerate(talks)]
    again, _ = around(reversed(renamed), share=0.5)
    assert {talk.id.replace("b", "a") for talk in again if talk.inserted} == chosen
    assert around(talks, share=0.5)[0] == half
    more, _ = around(talks, share=0.7)
    assert chosen < {talk.id for talk in more if talk.inserted}
    # The question stands anywhere among the text: at all depths.
    places = [question(talk).index("What is") / len(question(talk)) for talk in half if talk.inserted]
    assert min(places) < 0.1 and max(places) > 0.85 and 0.4 < np.mean(places) < 0.6


def test_a_chosen_conversation_that_came_before_is_a_duplicate_and_what_is_set_aside_is_handed_on_once():
    talks = [*some(3), conversation(("user", "What is 1?"), ("assistant", "1 it is."), number=9)]
    aside = Rejected("x.txt", "empty")
    found, _ = around(talks, length=900, read=lambda: iter([*documents(), aside]))
    rejected = [item for item in found if isinstance(item, Rejected)]
    assert rejected.count(aside) == 1 and len(rejected) == 2
    assert [(item.origin, item.reason) for item in rejected if item != aside] == [("a#9", "duplicate text")]
    assert "What is 1?" in next(item.text for item in rejected if item != aside)


def test_a_conversation_as_long_as_wanted_stays_as_it_is():
    talk = conversation(*TALK)
    assert around([talk], length=len(CHAT.encode(talk.messages)) + 20) == ([talk], Surrounded(long_already=1))
    with pytest.raises(UserError, match=r"data\.long_context\.text: the folder holds no usable document"):
        around([talk], read=lambda: iter([Rejected("x.txt", "empty")]))


def test_the_ids_are_those_of_the_chat_and_answers_alone_are_learned():
    (talk,), _ = around([conversation(*TALK, *MORE)])
    (document,) = rendered([talk], 400)
    ids = [i for part in document.parts for i in part.ids]
    assert [*ids, OURS.eos_id] == CHAT.encode(talk.messages)
    learned = [i for part in document.parts for i in part.ids if part.weight]
    assert learned == [*OURS.encode("是。"), 73, *OURS.encode("It is.")]
    assert list(screen([document])) == [document]
    inserted = [(part.origin, part.text) for part in document.parts if part.origin]
    assert inserted == [(origin, question(talk)[start:end]) for start, end, origin in talk.inserted]
    for part in document.parts:
        if part.origin:
            assert OURS.decode(part.ids) == part.text and not part.weight


@given(st.lists(made.contents(), min_size=1, max_size=6), st.integers(100, 250))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("marks", [made.BAICHUAN, made.CHATML])
def test_any_text_divides_into_parts_that_make_up_the_conversation(tmp_path_factory, marks, texts, length):
    tokenizer = made.make(tmp_path_factory.mktemp("t"), marks)
    read = [Document(str(i), text + " <C_A> end.", "books", "en", "x") for i, text in enumerate(texts)]
    (talk,), _ = around([conversation(*TALK)], length, read=lambda: iter(read), tokenizer=tokenizer)
    (document,) = rendered([talk], length, tokenizer)
    assert fault(document) is None
    ids = [i for part in document.parts for i in part.ids]
    whole = chat.of(tokenizer).encode(talk.messages)
    assert ids == whole[: len(ids)] and len(ids) >= len(whole) - 2
    assert "".join(part.text for part in document.parts if part.origin) == "".join(
        question(talk)[start:end] for start, end, _ in talk.inserted
    )


@given(st.text(max_size=1500))
@settings(max_examples=30, deadline=None)
def test_passages_make_up_the_text(text):
    found = passages(text)
    assert "".join(found) == text and all(len(passage) <= 400 + passage.count("\n") for passage in found)


def test_provenance_goes_with_a_document_to_the_rows(tmp_path):
    talks, _ = around(some(6), share=0.5)
    found = rendered(talks, 400)
    with Table(tmp_path / "a.parquet", DOCUMENT_SCHEMA) as table:
        for document in found:
            table.write(document, 1)
    read = list(read_documents(tmp_path / "a.parquet"))
    assert read == found
    manifest = pack({"a": lambda: iter(read)}, OURS, tmp_path / "rows", [400], 64, 0)
    source = manifest.sources["a"]
    chosen = [document for document in found if any(part.origin for part in document.parts)]
    tokens = sum(len(part.ids) for document in chosen for part in document.parts if part.origin)
    assert 0 < len(chosen) < 6 and (source.surrounded, source.inserted) == (len(chosen), {"books": tokens})
    assert type(manifest).load(tmp_path / "rows") == manifest
    ids = document_ids(tmp_path / "rows", "a", range(6))
    for number, document in enumerate(found):
        whole = [i for part in document.parts for i in part.ids]
        expected = [(part.origin, list(part.ids)) for part in document.parts if part.origin]
        held = ids[number].inserted
        assert [(one["origin"], whole[one["start"] : one["start"] + one["tokens"]]) for one in held] == expected
    bad = Document.of_parts("i", [Part("x", origin="books/1"), Part("y", (3,))], "s", "en", "x")
    assert fault(bad) == "a part is of another document, and not every part has its token ids"


def test_a_corpus_is_read_by_its_sources_in_turn_and_a_folder_as_it_is(tmp_path):
    for name, count in (("a", 3), ("b", 1)):
        with Table(tmp_path / "corpus" / "documents" / f"{name}.parquet", DOCUMENT_SCHEMA) as table:
            for i in range(count):
                table.write(Document(f"{i}", f"{name}{i}", name, "en", "x"), 1)
    assert [item.text for item in read_text(tmp_path / "corpus", ("x",), "en")] == ["a0", "b0", "a1", "a2"]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("plain")
    assert [item.text for item in read_text(tmp_path / "texts", ("x",), "en")] == ["plain"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["text=books"], "belong together"),
        (["share=0.5"], "belong together"),
        (["text=books", "share=1.5"], "must be at most 1"),
        (["text=books", "share=1.0", "length=9999999"], "exceeds the shortest of data.row_lengths"),
        (["text=books", "share=1.0", "lenght=9"], "length"),
    ],
)
def test_a_config_that_is_half_given_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        config_file.load("sft_quickstart", [f"data.long_context.{setting}" for setting in settings])
    assert config_file.load("sft_quickstart").data.long_context == LongContextConfig()


def test_a_row_of_32k_is_built_and_scored(tmp_path):
    """Beside a short conversation: spans, positions, and log p of the answer."""
    S = 32768
    talks, counts = around([conversation(*TALK)], S, read=lambda: documents(400))
    talks.append(conversation(*MORE, number=2))
    manifest = pack({"a": lambda: iter(rendered(talks, S))}, OURS, tmp_path, [S], 64, 0)
    (store,) = open_stores(tmp_path, manifest, [(S, "a")]).values()
    rows = [store[i] for i in range(len(store))]
    (row,) = [row for row in rows if max(row.lengths) > S - 100]
    batch = expand([row])
    (piece,) = np.flatnonzero(row.lengths > S - 100)
    mine = batch["segment_ids"][0] == piece + 1
    ids = CHAT.encode(talks[0].messages)
    assert batch["tokens"][0][mine].tolist() == ids and counts.tokens > S - 200
    assert batch["positions"][0][mine].tolist() == list(range(len(ids)))
    answer = [*OURS.encode("是。"), OURS.eos_id]
    learned = np.flatnonzero(batch["weights"][0] * mine)
    assert batch["targets"][0][learned].tolist() == answer == ids[-len(answer) :]

    config = small.config(
        num_layers=1, pattern=("global",), hidden=8, num_heads=1, vocab_size=OURS.vocab_size, max_positions=S
    )
    score = target_logprobs(config, model.create(config, 0)[1], small.BASE, by_blocks)
    in_row = float(score({name: batch[name] for name in BATCH_KEYS})[0][learned].sum())
    # What stands beside it in the row changes nothing.
    (alone,) = RowScorer(score, [S], S)([(ids, len(ids) - len(answer))])
    assert in_row == pytest.approx(alone, abs=1e-3)


def by_blocks(q, k, v, layer, rows, *, return_lse=False):
    """Causal attention inside of segments, block by block of queries in a loop, which compiles at once at any length.

    Legend: B batch, S queries and keys, H heads (as many KV heads), D head_dim, Q queries of a block.
    """
    q, k, v = prepared(q, k, v, layer, rows)
    B, S, H, D = q.shape

    def block(number):
        at = number * 128 + jnp.arange(128)
        scores = jnp.einsum("bqhd,bshd->bhqs", q[:, at], k) / jnp.sqrt(D)
        seen = (at[:, None] >= jnp.arange(S)) & (rows.segment_ids[:, at, None] == rows.segment_ids[:, None])
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
        return jnp.einsum("bhqs,bshd->bqhd", weights, v)

    blocks = jax.lax.map(block, jnp.arange(S // 128))
    return jnp.moveaxis(blocks, 0, 1).reshape(B, S, H, D)
