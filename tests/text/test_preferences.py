"""Preferences in the shapes that people have them, what of them cannot be used, and that a pair stays one."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.config.records import check_records
from m1jax.errors import UserError
from m1jax.rows.expand import expand
from m1jax.rows.packing import pack
from m1jax.text.corpus import write_corpus
from m1jax.text.documents import PAIR, SIDE, Document, Part, Rejected, read_documents
from m1jax.text.preference_records import Preference, read_preferences
from m1jax.text.rendering import Renderer
from m1jax.text.set_aside import units
from m1jax.tokenizer import chat
from tests.rows import toy_rows
from tests.rows.test_target_spans import packed_rows
from tests.tokenizer.chat.chat_tokenizers import OURS

ASK = {"role": "user", "content": "Where is the heart?"}
GOOD = {"role": "assistant", "content": "Left of the middle."}
BAD = {"role": "assistant", "content": "In the head."}
BE_BRIEF = {"role": "system", "content": "Be brief."}
Q, YES, NO = ASK["content"], GOOD["content"], BAD["content"]


def read(folder, *records, **rest):
    folder.mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    return list(read_preferences(folder, ("general", "medical"), **rest))


SHAPES = {
    "texts": ({"prompt": Q, "chosen": YES, "rejected": NO}, [ASK]),
    "whole lists": ({"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, [ASK]),
    "whole lists beside the prompt": ({"prompt": Q, "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, [ASK]),
    "lists": ({"prompt": [BE_BRIEF, ASK], "chosen": [GOOD], "rejected": [BAD]}, [BE_BRIEF, ASK]),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": Q}],
            "chosen": {"from": "gpt", "value": YES},
            "rejected": {"from": "gpt", "value": NO},
        },
        [ASK],
    ),
    "alpaca": (
        {"instruction": "Where is", "input": "the heart?", "chosen": YES, "rejected": NO, "system": "Be brief."},
        [BE_BRIEF, {"role": "user", "content": "Where is\n\nthe heart?"}],
    ),
    "question": ({"question": Q, "chosen": YES, "rejected": NO, "id": 7}, [ASK]),
    "several turns": ({"messages": [ASK, GOOD, ASK], "chosen": YES, "rejected": NO}, [ASK, GOOD, ASK]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_two_conversations_that_end_differently(tmp_path, shape):
    record, before = SHAPES[shape]
    (found,) = read(tmp_path / "prefs", record)
    assert isinstance(found, Preference), found
    assert list(found.chosen.messages) == [*before, GOOD] and list(found.rejected.messages) == [*before, BAD]
    assert found.chosen.weights == found.rejected.weights == (*[0.0] * len(before), 1.0)
    assert (found.chosen.id, found.rejected.id) == ("a.jsonl#1/chosen", "a.jsonl#1/rejected")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": Q, "chosen": YES, "rejected": YES}, "chosen and rejected are equal"),
        ({"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "?!"}, BAD]}, "answer different questions"),
        ({"prompt": Q, "chosen": YES}, "no rejected answer (its fields: 'prompt', 'chosen')"),
        ({"prompt": Q, "chosen": YES, "rejected": " "}, "an empty answer"),
        ({"chosen": YES, "rejected": NO}, "no question (give it as prompt, or as messages in both answers)"),
        ({"chosen": [ASK, GOOD, ASK], "rejected": [ASK, BAD]}, "chosen does not end with an answer"),
        ({"prompt": Q, "chosen": 3, "rejected": NO}, "the field 'chosen' is of type int, not a text"),
        ({"prompt": Q, "chosen": {"role": "wizard", "content": "x"}, "rejected": NO}, "unknown role 'wizard'"),
    ],
)
def test_what_cannot_be_used_is_set_aside_with_its_reason(tmp_path, record, reason):
    (found,) = read(tmp_path / "prefs", record)
    assert isinstance(found, Rejected) and reason in found.reason


def test_columns_have_names_of_their_own(tmp_path):
    fields = {"question": "q", "chosen": "better", "rejected": "worse"}
    check_records(fields, {}, ("general",))
    (found,) = read(tmp_path / "prefs", {"q": Q, "better": YES, "worse": NO}, fields=fields)
    assert found.chosen.messages[-1] == GOOD
    with pytest.raises(UserError, match="chosen is empty"):
        check_records({"chosen": ""}, {}, ("general",))
    pq.write_table(pa.table({"prompt": [Q], "better": [YES]}), tmp_path / "prefs" / "b.parquet")
    with pytest.raises(UserError, match=r"no column .chosen. \(its columns: prompt, better\)"):
        list(read_preferences(tmp_path / "prefs", ("general",)))


def test_only_the_answers_are_learned_and_neither_is_cut(tmp_path):
    long = {"prompt": Q, "chosen": YES, "rejected": "no " * 300}
    renderer = Renderer(chat.of(OURS), OURS, 100)
    found = list(renderer.pairs(read(tmp_path / "prefs", SHAPES["texts"][0], long, SHAPES["several turns"][0])))
    aside = [item for item in found if isinstance(item, Rejected)]
    assert [item.reason for item in aside] == ["a side of a pair is longer than a row of 100 tokens"]
    documents = [item for item in found if isinstance(item, Document)]
    assert [dict(d.columns) for d in documents] == [{PAIR: n, SIDE: side} for n in (0, 1) for side in (1, 0)]
    for document, answer in zip(documents, itertools.cycle([YES, NO]), strict=False):
        learned = "".join(part.text for part in document.parts if part.weight)
        assert learned.startswith(answer) and document.text.endswith(answer)


def pairs(count, sides=2):
    return [
        Document.of_parts(
            f"a#{i}/{side}", [Part("q", weight=0.0), Part("x" * (3 + 7 * i % 11) + str(side))], "s", "en", "general",
            columns={PAIR: i, SIDE: side}, shard="a",
        )
        for i in range(count)
        for side in range(sides)
    ]  # fmt: skip


@given(lost=st.sets(st.integers(0, 39)), share=st.sampled_from([0.0, 0.1, 0.5]), most=st.sampled_from([10, 10**6]))
@settings(max_examples=25, deadline=None)
def test_a_pair_is_held_out_or_trained_on_or_set_aside_as_one(tmp_path_factory, lost, share, most):
    documents = pairs(20)
    items = [Rejected(d.id, "lost", source="s") if i in lost else d for i, d in enumerate(documents)]
    folder = tmp_path_factory.mktemp("corpus")
    whole = [i for i in range(20) if not lost & {2 * i, 2 * i + 1}]
    if not whole:
        return
    report = write_corpus(folder, items, heldout_share=share, heldout_bytes=most)
    trained = [d.columns[PAIR] for d in read_documents(folder / "documents")]
    held = [d.columns[PAIR] for d in read_documents(folder / "heldout")] if (folder / "heldout").is_dir() else []
    assert sorted([*trained, *held]) == sorted(2 * whole)
    assert not set(trained) & set(held)
    broken = sum(len(lost & {2 * i, 2 * i + 1}) == 1 for i in range(20))
    assert report.rejected.get("the other side of its pair was set aside", 0) == broken


def test_documents_that_are_no_pair_go_on_alone():
    documents = [toy_rows.document(i, 5) for i in range(3)]
    assert list(units(documents)) == [(document,) for document in documents]


def test_the_sides_of_a_pair_stand_side_by_side_in_a_row(tmp_path):
    documents = pairs(30)
    manifest = pack({"a": lambda: iter(documents)}, toy_rows.ToyTokenizer(), tmp_path, [64], 8, 0)
    seen = []
    for row in itertools.chain.from_iterable(packed_rows(tmp_path, manifest).values()):
        columns = {name: array[0] for name, array in expand([row], (PAIR, SIDE)).items()}
        _, firsts = np.unique(columns["segment_ids"], return_index=True)
        firsts = [at for at in firsts if columns["segment_ids"][at]]
        found = [(int(columns[PAIR][at]), int(columns[SIDE][at])) for at in firsts]
        assert all(
            one[0] == other[0] and one[1] != other[1] for one, other in zip(found[::2], found[1::2], strict=True)
        )
        seen += found
    assert len(seen) == len(documents)
