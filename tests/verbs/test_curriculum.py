"""`m1 curriculum`, its replay, and a run whose stages are amended on the way."""

import dataclasses
import json
import re

import numpy as np
import pytest

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.curriculum.loader import Loader
from m1jax.text.documents import DOCUMENT_SCHEMA, Document, Part, Table, read_documents
from m1jax.train.run import history
from m1jax.verbs import main
from tests.verbs.conftest import TINY

SHORT = (
    "stages.0.learning_rate.warmup_steps=0",
    "stages.0.tokens=1024",
    "stages.1.tokens=1024",
    "stages.2.tokens=2048",
)


def command(verb, road, *settings, folder=None):
    keys = (f"folder={folder or road}", *(f"data.{name}={road}/{name}" for name in ("corpus", "tokenizer", "rows")))
    return [*verb, "--config", TINY, *(part for key in (*keys, *settings) for part in ("--set", key))]


def told(capsys, arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def documents(road):
    """Ids of every document of the corpus, with its end, by identifier."""
    tokenizer = tokenizers.load(road / "tokenizer")
    found = {document.id: document.text for document in read_documents(road / "corpus" / "documents")}
    return tokenizer, {name: [*tokenizer.encode(text), tokenizer.eos_id] for name, text in found.items()}


@pytest.fixture(scope="module")
def trained(road, tmp_path_factory):
    """A short run, and every batch that its training read."""
    folder, batches = tmp_path_factory.mktemp("short"), []
    original = Loader.batches

    def record(self, first, last):
        for batch in original(self, first, last):
            batches.append(batch)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "batches", record)
        assert main(command(["train"], road, *SHORT, folder=folder)) == 0
    return folder, batches


def test_replay_names_what_training_really_read(road, trained, documents, capsys):
    folder, batches = trained
    tokenizer, encoded = documents
    assert len(batches) == 6
    for step, batch in enumerate(batches, 1):
        replay = ["curriculum", "replay", "--step", str(step)]
        rows = told(capsys, command(replay, road, *SHORT, folder=folder))["rows"]
        assert len(rows) == len(batch["tokens"])
        for line, weights, row in zip(batch["tokens"], batch["weights"], rows, strict=True):
            at = 0
            for piece in row["pieces"]:
                assert piece["document"].endswith(f"-cases.jsonl#{int(piece['record_id']) + 1}")
                own = encoded[piece["document"]][piece["offset"] : piece["offset"] + piece["tokens"]]
                assert line[at : at + piece["tokens"]].tolist() == own
                assert weights[at : at + piece["tokens"]].tolist() == [1] * (len(own) - 1) + [0]
                end = "<eos>" if own[-1] == tokenizer.eos_id else ""
                assert piece["text"] == tokenizer.decode_bytes(own).decode(errors="replace") + end
                assert [(span["tokens"], span["weight"]) for span in piece["spans"]] == [(1, 0), (len(own) - 1, 1)]
                assert piece["spans"][0]["text"] == tokenizer.decode_bytes(own[:1]).decode(errors="replace")
                at += piece["tokens"]
            assert row["padding"] == len(line) - at and not weights[at:].any()
            assert row["step"] == step - 1
    numbers = [row["number"] for row in rows]
    assert numbers == list(range(5 * 8, 6 * 8))


def test_what_will_be_read_is_shown_before_it_runs(road, documents, capsys, tmp_path):
    _, encoded = documents
    shown = told(capsys, command(["curriculum", "--examples", "2"], road))
    assert [(s["first_step"], s["last_step"], s["first_row"], s["last_row"]) for s in shown["stages"]] == [
        (1, 6, 0, 47),
        (7, 12, 48, 95),
        (13, 18, 96, 143),
    ]
    for use in shown["uses"]:
        assert use["read"] >= use["epochs"] and (use["rows"] == 0 or use["last"]["row_length"] in (64, 128))
    assert [len(shown["examples"][name]) for name in ("general", "medical", "annealing")] == [2, 2, 2]
    for rows in shown["examples"].values():
        assert all(piece["document"] in encoded for row in rows for piece in row["pieces"])
    picture = tmp_path / "mixture.png"
    assert main([*command(["curriculum"], road), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<eos>" in out and "144 rows" in out and re.search(r"\[general/\S+#\d+ \(id \d+\) from token 0, ", out)
    assert main([*command(["curriculum"], road), "--examples", "0"]) == 0
    assert "from token" not in capsys.readouterr().out
    assert main([*command(["curriculum"], road), "--plot", str(tmp_path / "no" / "x.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.fixture(scope="module")
def chats(road, tmp_path_factory):
    """A run's settings over a corpus of conversations and plain notes, of which only parts are learned."""
    folder = tmp_path_factory.mktemp("chats")
    prompt = Part(ids=(71,), weight=0.0), Part("Which organ? ", weight=0.0)
    parts = {"chats": [*prompt, Part("The heart."), Part("!", weight=0.5)], "notes": []}
    details = {"sources": {source: {"bytes": 1} for source in parts}}
    with artefact.building(folder / "corpus", "corpus", "key", details) as corpus:
        for source, some in parts.items():
            with Table(corpus / "documents" / f"{source}.parquet", DOCUMENT_SCHEMA) as table:
                for i in range(60):
                    document = Document.of_parts(f"{source}/{i}", some, source, "en", "general")
                    table.write(document if some else dataclasses.replace(document, text=f"A note of {i}."), 1)
    stages = (f"stages.{i}.mixture={{'chats': 0.5, 'notes': 0.5}}" for i in range(3))
    return (f"data.corpus={folder}/corpus", f"data.rows={folder}/rows", *stages)


def test_the_share_of_tokens_that_are_targets(road, chats, capsys):
    assert main(command(["pack"], road)) == 0
    assert "targets" not in capsys.readouterr().out
    assert main(command(["pack"], road, *chats)) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.split()}
    assert lines["source"][4:6] == ["tokens", "targets"]
    tokenizer = tokenizers.load(road / "tokenizer")
    before, *after = (len(tokenizer.encode(text)) for text in ("Which organ? ", "The heart.", "!"))
    learned = sum(after) + 1
    assert lines["chats"][4] == f"{learned / (before + learned):.1%}"
    assert lines["notes"][4] == "100.0%"
    assert float(lines["chats"][4][:-1]) < float(lines["all"][3][:-1]) < 100


def test_decoded_rows_show_what_is_a_target(road, chats, capsys):
    assert main(command(["curriculum", "--examples", "2"], road, *chats)) == 0
    out = capsys.readouterr().out
    assert "{<B_SYS>Which organ? }The heart.{0.5: !<eos>}" in out
    assert re.search(r"\{A[^{}]{,5}\}[^{}]*\d\.<eos>\n", out)
    for row in told(capsys, command(["curriculum", "replay", "--step", "2"], road, *chats))["rows"]:
        for piece in row["pieces"]:
            spans = [(span["weight"], span["text"]) for span in piece["spans"]]
            assert "".join(text for _, text in spans) == piece["text"]
            if row["source"] == "chats":
                assert spans == [(0, "<B_SYS>Which organ? "), (1, "The heart."), (0.5, "!<eos>")]
            else:
                assert [weight for weight, _ in spans] == [0, 1]


def test_rows_behind_an_address_are_the_same_rows(road, capsys):
    replay = ["curriculum", "replay", "--step", "14"]
    here = told(capsys, command(replay, road))
    assert told(capsys, command(replay, road, f"data.rows=file://{road}/rows")) == here
    assert main(command(["pack"], road, f"data.rows=file://{road}/rows")) == 2
    assert "is an address, but `m1 pack` writes to a disk" in capsys.readouterr().err


def test_what_the_command_refuses(road, capsys):
    for arguments, words in (
        (command(["curriculum", "replay"], road), "replay needs --step N"),
        (command(["curriculum", "--step", "3"], road), "--step belongs to replay"),
        (command(["curriculum", "replay", "--step", "19"], road), "step 19 is not in the run, which has steps 1 to 18"),
        (command(["curriculum", "replay", "--step", "0"], road), "step 0 is not in the run"),
        (command(["curriculum"], road, "data.max_epochs={'*': 0.1}"), r"more than data.max_epochs['*'] = 0.1 allows"),
        (command(["curriculum"], road, f"data.rows=file://{road}/corpus"), "is of kind 'corpus', but 'rows' is needed"),
        (command(["curriculum"], road, "data.rows=file:///nowhere/rows"), "m1jax.json is missing"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_stages_ahead_are_amended_and_the_past_is_not(road, trained, capsys):
    folder, _ = trained
    more = (*SHORT[:-1], "stages.2.tokens=3072")
    assert main(command(["train"], road, *more, folder=folder)) == 2
    assert "stage 'annealing': steps was 2, is 3: restore it" in (said := capsys.readouterr().err)
    assert "m1 train --amend" in said
    past = (*more, "seed=1")
    assert main([*command(["train"], road, *past, folder=folder), "--amend"]) == 2
    assert "was trained on other data" in (said := capsys.readouterr().err) and "seed was 0, is 1" in said
    assert not (folder / "train" / "history.jsonl").exists()
    assert main([*command(["train"], road, *more, folder=folder), "--amend"]) == 0
    assert "Amended after step 6: stage 'annealing': steps was 2, is 3." in capsys.readouterr().out
    (line,) = history.read(folder / "train" / "history.jsonl")
    assert (line["step"], line["changes"]) == (6, ["stage 'annealing': steps was 2, is 3"])
    # The checkpoint now holds the amended curriculum: it goes on without the flag.
    assert main(command(["train"], road, *more, folder=folder)) == 0
    assert np.isfinite(json.loads((folder / "train" / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
