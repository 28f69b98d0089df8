"""Conversations in the shapes that people have them, and what of them cannot be used."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m1jax.errors import UserError
from m1jax.text.conversation_records import read_conversations
from m1jax.text.conversations import Conversation, UnusableError, checked
from m1jax.text.documents import Rejected

ASK = {"role": "user", "content": "Where is the heart?"}
SAY = {"role": "assistant", "content": "Left of the middle."}
CALLS = "a message calls tools, for which the chat formats have no text"
MORE = {"role": "user", "content": "And the liver?"}


def read(folder, *records, name="a.jsonl", **rest):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, records)))
    return list(read_conversations(folder, ("general", "medical"), **rest))


def shown(item):
    """(role, text, weight) of the messages."""
    assert isinstance(item, Conversation), item
    return [(m["role"], m["content"], w) for m, w in zip(item.messages, item.weights, strict=True)]


PLAIN = [("user", "Where is the heart?", 0.0), ("assistant", "Left of the middle.", 1.0)]
SYSTEM = ("system", "Be brief.", 0.0)
Q, A = ASK["content"], SAY["content"]
SHAPES = {
    "messages": ({"messages": [ASK, SAY]}, PLAIN),
    "text in parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("Where is", " the heart?")]},
                SAY,
            ]
        },
        PLAIN,
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}, PLAIN),
    "sharegpt with system": (
        {"system": "Be brief.", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        [SYSTEM, *PLAIN],
    ),
    "messages as JSON": ({"messages": json.dumps([ASK, SAY])}, PLAIN),
    "alpaca": ({"instruction": Q, "input": "", "output": A}, PLAIN),
    "alpaca with input": (
        {"instruction": "Translate.", "input": "Herz", "output": "heart"},
        [("user", "Translate.\n\nHerz", 0.0), ("assistant", "heart", 1.0)],
    ),
    "alpaca with history": (
        {"instruction": "And the liver?", "output": "Right.", "history": [[Q, A]], "system": "Be brief."},
        [SYSTEM, *PLAIN, ("user", "And the liver?", 0.0), ("assistant", "Right.", 1.0)],
    ),
    "prompt and completion": ({"prompt": Q, "completion": A, "messages": None}, PLAIN),
    "lists of messages": (
        {"prompt": [ASK, SAY, MORE], "completion": [{"role": "assistant", "content": "Right."}]},
        [*PLAIN[:1], (*PLAIN[1][:2], 0.0), ("user", "And the liver?", 0.0), ("assistant", "Right.", 1.0)],
    ),
    "question and answer": ({"question": Q, "answer": A, "id": 7}, PLAIN),
    "tools": (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                ASK,
                SAY,
                {"role": "tool", "content": "42"},
                {"role": "code", "content": "print(1)"},
                {"role": "assistant", "content": "It is 42."},
            ]
        },
        [SYSTEM, *PLAIN, ("function", "42", 0.0), ("code", "print(1)", 0.0), ("assistant", "It is 42.", 1.0)],
    ),
    "an empty system prompt": ({"messages": [{"role": "system", "content": " "}, ASK, SAY], "system": ""}, PLAIN),
    "its own system prompt wins": (
        {"messages": [{"role": "System", "content": "Be brief."}, ASK, SAY], "system": "Be long."},
        [SYSTEM, *PLAIN],
    ),
    "its own system prompt is empty": (
        {"messages": [{"role": "system", "content": ""}, ASK, SAY], "system": "Be brief."},
        [SYSTEM, *PLAIN],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_records(tmp_path, shape):
    record, expected = SHAPES[shape]
    (item,) = read(tmp_path / "heart", record)
    assert shown(item) == expected
    assert (item.id, item.shard, item.source, item.domain) == ("a.jsonl#1", "a.jsonl", "heart", "general")
    assert item.record_id == ("7" if "id" in record else "")


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "text in parts"])
def test_the_same_from_parquet(tmp_path, shape):
    record, expected = SHAPES[shape]
    pq.write_table(pa.Table.from_pylist([record, record]), tmp_path / "a.parquet")
    items = list(read_conversations(tmp_path, ("general",)))
    assert [shown(item) for item in items] == [expected] * 2
    assert [item.id for item in items] == ["a.parquet#1", "a.parquet#2"]


def test_columns_that_the_config_names(tmp_path):
    fields = {"question": "stem", "answer": "reply", "system": ""}
    record = {"stem": Q, "reply": A, "system": "ignored", "messages": [ASK], "kind": "medical"}
    (item,) = read(tmp_path, record, fields={**fields, "domain": "kind"})
    assert shown(item) == PLAIN and item.domain == "medical"
    (item,) = read(tmp_path, {"turns": [ASK, SAY], "question": "x", "answer": "y"}, fields={"messages": "turns"})
    assert shown(item) == PLAIN


def test_weights(tmp_path):
    light, heavy = {**SAY, "weight": 0}, {**SAY, "weight": 0.5}
    assert checked([ASK, light, MORE, heavy])[1] == (0.0, 0.0, 0.0, 0.5)
    assert checked([ASK, SAY, MORE, SAY])[1] == (0.0, 1.0, 0.0, 1.0)
    assert checked([ASK, SAY, MORE, SAY, MORE], "last")[1] == (0.0, 0.0, 0.0, 1.0, 0.0)
    assert checked([ASK, heavy, MORE, SAY], "last")[1] == (0.0, 0.5, 0.0, 1.0)
    # What the model does not write is never learned.
    assert checked([{**ASK, "weight": 1}, SAY])[1] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no answer"),
        ([ASK], "no answer"),
        ([SAY], "roles out of order: assistant first"),
        ([ASK, ASK, SAY], "roles out of order: user after user"),
        ([ASK, SAY, SAY], "roles out of order: assistant after assistant"),
        ([ASK, {"role": "tool", "content": "42"}, SAY], "roles out of order: function after user"),
        ([ASK, SAY, {"role": "system", "content": "x"}], "roles out of order: system after assistant"),
        ([ASK, {"role": "assistant", "content": " \n"}], "an empty answer"),
        ([ASK, {"role": "assistant"}], "an empty answer"),
        ([{"role": "user", "content": ""}, SAY], "an empty message of role user"),
        ([ASK, {"role": "asistant", "content": "x"}], "unknown role 'asistant' (nearest known: 'assistant')"),
        ([ASK, {"content": "x"}], "a message without a role"),
        ([ASK, {"role": 3, "content": "x"}], "a role that is no text"),
        (["hello"], "a message of type str, not an object with role and content"),
        ([ASK, {"role": "assistant", "content": 3}], "a message's content is of type int, not a text"),
        ([{"role": "user", "content": [{"type": "image"}]}, SAY], "a part of a message is of type 'image', not a text"),
        ([ASK, {**SAY, "tool_calls": [{"id": "1"}]}], CALLS),
        ([ASK, {"from": "function_call", "value": "{}"}], CALLS),
        ([ASK, {**SAY, "weight": -1}], "an answer's weight is not a number of 0 or more"),
        ([ASK, {**SAY, "weight": float("nan")}], "an answer's weight is not a number of 0 or more"),
        ([ASK, {**SAY, "weight": "1"}], "an answer's weight is not a number of 0 or more"),
        ([ASK, {**SAY, "weight": 0}], "no answer has a weight above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(messages, reason):
    with pytest.raises(UnusableError) as error:
        checked(messages)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"mesages": [ASK, SAY], "n": 1},
            "no conversation (its fields: 'mesages', 'n'; nearest known: 'messages' for 'mesages')",
        ),
        ({"prompt": Q}, "no conversation (its fields: 'prompt'; 'prompt' without 'completion')"),
        ({"stem": Q, "n": 3}, "no conversation (its fields: 'stem', 'n')"),
        ({}, "no conversation (its fields: none)"),
        ({"messages": "hello"}, "the field 'messages' is a text that is no JSON, not a list of messages"),
        ({"messages": {"a": 1}}, "the field 'messages' is of type dict, not a list of messages"),
        ({"question": Q, "answer": ["a", "b"]}, "the field 'answer' is of type list, not a text"),
        ({"instruction": Q, "output": A, "history": 3}, "the field 'history' is not a list of pairs"),
        ({"question": Q, "answer": "\ud800"}, "no valid Unicode"),
    ],
)
def test_records_that_are_set_aside_with_their_place(tmp_path, record, reason):
    good = {"messages": [ASK, SAY]}
    first, item, last = read(tmp_path, good, {**record, "id": "x"} if record else record, good)
    assert shown(first) == shown(last) == PLAIN
    assert isinstance(item, Rejected)
    found = item.reason.replace("'id', ", "").replace(", 'id'", "")
    assert (item.origin, found, item.record_id) == ("a.jsonl#2", reason, "x" if record else "")
    assert item.text.startswith("{")


def test_lines_that_are_none_and_bytes_that_are_no_text(tmp_path):
    line = json.dumps({"messages": [ASK, SAY]}).encode()
    data = b"\n".join([line, b"{", b"[1]", line.replace(b"heart", b"h\xe4rt")])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "b.txt").write_text("a text")
    first, *others = read_conversations(tmp_path, ("general",))
    assert shown(first) == PLAIN
    assert [item.reason for item in others] == [
        "not JSON", "not a JSON object", "undecodable bytes (not UTF-8)", "not a .jsonl or .parquet file",
    ]  # fmt: skip


def test_a_row_that_is_no_text_costs_only_itself(tmp_path):
    """Strings inside Parquet are not checked to be UTF-8."""
    texts = pa.array([b"fine", b"h\xe4rt"]).cast(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    messages = [
        pa.StructArray.from_arrays([pa.array([role] * 2), texts], ["role", "content"]) for role in ("user", "assistant")
    ]
    both = pa.concat_arrays(messages).take(pa.array([0, 2, 1, 3]))
    column = pa.ListArray.from_arrays(pa.array([0, 2, 4]), both)
    pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
    first, second = read_conversations(tmp_path, ("general",))
    assert shown(first) == [("user", "fine", 0.0), ("assistant", "fine", 1.0)]
    assert isinstance(second, Rejected) and second.origin == "a.parquet#2"


def test_folders_and_columns_that_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no folder: give a folder of \.jsonl or \.parquet files\."):
        list(read_conversations(tmp_path / "none", ("general",)))
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(UserError, match=r"holds no \.jsonl or \.parquet file"):
        list(read_conversations(tmp_path, ("general",)))
    pq.write_table(pa.table({"qestion": [Q], "reply": [A]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has no conversation: its fields: 'qestion', 'reply'; nearest known: 'question' for 'qestion'; name its columns with config key data\.fields\.messages"):  # fmt: skip  # noqa: E501
        list(read_conversations(tmp_path, ("general",)))


def test_reasons_of_many_names_are_counted_together(tmp_path):
    records = [{"messages": [{"role": f"r{i}", "content": "x"}]} for i in range(150)]
    reasons = [item.reason for item in read(tmp_path, *records)]
    assert reasons[0].startswith("unknown role 'r0' (nearest") and len(set(reasons)) == 101
    assert reasons[-1] == "unknown role"
