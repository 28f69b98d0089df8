"""Conversations in long context, by the verbs: what is shown of it before a run, and what a change of it does."""

import json

import pytest

from m1jax.verbs import main
from tests.tokenizer.chat import chat_tokenizers as made
from tests.verbs import test_sft
from tests.verbs.test_bad_input import refused


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The arguments of verbs up to the rows: these need a tokenizer and no model."""
    root = tmp_path_factory.mktemp("given")
    tokenizer = made.make(root / "tokenizer", made.BAICHUAN).folder
    test_sft.write(root / "talks")
    (root / "books").mkdir()
    for i in range(3):
        (root / "books" / f"{i}.txt").write_text(" ".join(f"The patient {i} coughs {j} times." for j in range(99)))
    (root / "books" / "0_empty.txt").write_text(" ")

    def arguments(folder, **settings):
        settings = {"folder": folder, "data.tokenizer": tokenizer, **settings}
        keys = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return ["--config", test_sft.CONFIG, *keys]

    return root, arguments


def test_what_stands_around_conversations_is_shown_and_counted(given, tmp_path, capsys):
    root, arguments = given
    talks = ["--conversations", str(root / "talks")]
    long = {"data.long_context.text": root / "books", "data.long_context.share": 0.5}
    run = arguments(tmp_path / "run", **long)
    assert main(["corpus", *run, *talks]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"conversations stand among text of {root / 'books'}" in out and "read and not learned" in out
    assert "set aside: 1 for empty" in out
    assert main(["pack", *run]) == main(["curriculum", *run, "--examples", "9"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert " documents stand among other text, of weight 0:" in out and "from books " in out
    assert "{books/0.txt," in out and " tokens: The patient 0 coughs" in out
    assert main(["curriculum", *run, "--examples", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = found["inserted"]["talks"]
    assert 20 < counts["surrounded"] < 60 < counts["documents"]
    assert 0 < counts["inserted"]["books"] < counts["tokens"]
    spans = [span for row in found["examples"]["sft"] for piece in row["pieces"] for span in piece["spans"]]
    inserted = [span for span in spans if "origin" in span]
    assert inserted and all(span["weight"] == 0 and "coughs" in span["text"] for span in inserted)
    # The same is made once; another share makes other conversations.
    assert main(["corpus", *run, *talks]) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(["corpus", *arguments(tmp_path / "run", **long | {"data.long_context.share": 1.0}), *talks]) == 0
    assert "already complete" not in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_refused_and_leaves_nothing(given, tmp_path, capsys):
    root, arguments = given
    long = {"data.long_context.text": tmp_path / "none", "data.long_context.share": 0.5}
    refused(
        capsys,
        ["corpus", *arguments(tmp_path / "run", **long), "--conversations", str(root / "talks")],
        str(tmp_path / "none"),
    )
    assert not (tmp_path / "run" / "corpus").exists()
