"""seqio tasks in and out; needs seqio, as the extra `data` brings it."""

import subprocess
import sys

import numpy as np
import pytest

from m1jax.curriculum import seqio_mixtures
from m1jax.errors import UserError
from m1jax.rows.expand import expand
from m1jax.rows.manifest import Manifest, document_ids, open_stores
from m1jax.rows.packing import pack
from m1jax.text import seqio_tasks as tasks
from m1jax.text.corpus import write_corpus
from m1jax.text.documents import Document, Part, Rejected, read_documents
from m1jax.tokenizer import train
from m1jax.tokenizer.seqio_vocabulary import import_seqio
from m1jax.verbs import main
from tests.rows import toy_rows
from tests.verbs.conftest import TINY

MODULE = """
import seqio
import tensorflow as tf

TEXTS = ["first text", "second text, 急性", "  ", "third"]


def examples(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"text": TEXTS, "difficulty": [1.0, 2.0, 3.0, 4.0]})


def upper(dataset):
    return dataset.map(lambda example: {**example, "text": tf.strings.upper(example["text"])})


source = seqio.FunctionDataSource(examples, splits=["train"])
text = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)
ids = seqio.Feature(seqio.ByteVocabulary())
seqio.TaskRegistry.add("users_text", source=source, preprocessors=[upper], output_features={"text": text})
for name, pretokenized in (("users_kept", True), ("users_ids", False)):
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            lambda dataset: dataset.map(lambda example: {"targets": example["text"]}),
            lambda dataset, output_features, keep=pretokenized: seqio.preprocessors.tokenize(
                dataset, output_features, copy_pretokenized=keep
            ),
        ],
        output_features={"targets": ids},
    )
for name, inputs in (("users_pairs", lambda text: "Q: " + text), ("users_input_ids", lambda text: [3, 4])):
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            lambda dataset, make=inputs: dataset.map(lambda e: {"inputs": make(e["text"]), "targets": e["text"]})
        ],
        output_features={"targets": text},
    )
seqio.MixtureRegistry.add("users_mixture", [("users_ids", 1.0), ("users_kept", 2.0)])
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    path = tmp_path_factory.mktemp("module") / "users_tasks.py"
    path.write_text(MODULE, encoding="utf-8")
    tasks.sources({}, str(path))
    return str(path)


def test_a_registered_task_is_packed_as_it_reads(module, tmp_path):
    sources = tasks.sources({"users_text": "medical"}, module)
    read = list(sources["users_text"]())
    assert [document.text for document in read] == ["FIRST TEXT", "SECOND TEXT, 急性", "  ", "THIRD"]
    assert [document.difficulty for document in read] == [1, 2, 3, 4]
    assert {(document.domain, document.language, document.source) for document in read} == {
        ("medical", "und", "users_text")
    }
    manifest = pack(sources, toy_rows.ToyTokenizer(), tmp_path, [8, 64], 4, 0)
    source = manifest.sources["users_text"]
    assert (source.documents, source.rejected, source.domain) == (3, 1, "medical")
    (store,) = open_stores(tmp_path, manifest, [(64, "users_text")]).values()
    row = store[0]
    pieces = np.split(row.tokens, np.cumsum(row.lengths)[:-1])
    ids = document_ids(tmp_path, "users_text", row.documents.tolist())
    found = {ids[int(n)].id: "".join(map(chr, piece[:-1])) for n, piece in zip(row.documents, pieces, strict=True)}
    assert found == {f"users_text#{i + 1}": read[i].text for i in (0, 1, 3)}


def test_inputs_are_read_and_targets_are_learned(module, tmp_path):
    sources = tasks.sources({"users_pairs": "general"}, module)
    read = list(sources["users_pairs"]())
    assert read[0].text == "Q: first textfirst text"
    assert read[0].parts == (Part("Q: first text", weight=0.0), Part("first text"))
    manifest = pack(sources, toy_rows.ToyTokenizer(), tmp_path, [64], 4, 0)
    source = manifest.sources["users_pairs"]
    texts = ["first text", "second text, 急性", "  ", "third"]
    assert source.documents == 4 and source.trained_tokens == sum(len(text) + 1 for text in texts)
    (store,) = open_stores(tmp_path, manifest, [(64, "users_pairs")]).values()
    learned = []
    for row in (store[i] for i in range(len(store))):
        arrays = {name: array[0] for name, array in expand([row]).items()}
        ids = np.where(arrays["weights"] > 0, arrays["targets"], ord("|")).tolist()
        learned += filter(None, "".join(chr(i) if i != toy_rows.EOS else "$" for i in ids).split("|"))
    assert sorted(learned) == sorted(f"{text}$" for text in texts)


def test_a_mixture_stands_for_its_tasks(module):
    sources = tasks.sources({"users_mixture": "general"}, module)
    assert sorted(sources) == ["users_ids", "users_kept"]
    assert next(sources["users_kept"]()).text == "first text"


def test_tasks_that_cannot_be_packed(module, tmp_path):
    with pytest.raises(UserError, match=r"users_ids.* gives no string feature .*copy_pretokenized=True"):
        list(tasks.sources({"users_ids": "general"}, module)["users_ids"]())
    with pytest.raises(UserError, match=r"users_input_ids.* gives no string feature inputs_pretokenized or inputs"):
        list(tasks.sources({"users_input_ids": "general"}, module)["users_input_ids"]())
    with pytest.raises(UserError, match=r"'users_txt' is not registered \(there are: .*users_text"):
        tasks.sources({"users_txt": "general"}, module)
    with pytest.raises(UserError, match="would be stored as source 'users_kept'"):
        tasks.sources({"users_kept": "general", "users_mixture": "general"}, module)
    bad = tmp_path / "bad.py"
    bad.write_text("raise RuntimeError('oh')")
    for name in (str(bad), "nowhere.at_all", str(tmp_path / "gone.py")):
        with pytest.raises(UserError, match=r"data\.tasks_module: .* cannot be imported"):
            tasks.sources({}, name)


def test_bytes_that_are_no_text_are_set_aside():
    seqio, tf = import_seqio()
    examples = {"text": [b"ok", b"\xff\xfe"], "id": [b"own", b"\xff"], "difficulty": [b"hard", b"2"]}
    dataset = lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(examples)  # noqa: E731
    task = seqio.Task("bytes", seqio.FunctionDataSource(dataset, splits=["train"]), output_features={})
    good, bad = tasks.read_task(task, "general")
    assert (good.text, good.record_id, good.difficulty) == ("ok", "own", None)
    assert bad == Rejected("bytes#2", "undecodable bytes (not UTF-8)", r"\xff\xfe", "bytes", "ff")
    with pytest.raises(UserError, match=r"has no split 'test' \(it has: train\)"):
        next(tasks.read_task(task, "general", "test"))


def test_the_command_packs_tasks_alone_and_beside_a_corpus(module, tmp_path, capsys):
    train(iter(["first text, second text, third"] * 3), 400).save(tmp_path / "tokenizer")
    run = ["pack", "--config", TINY, "--set", f"folder={tmp_path}", "--set", f"data.tasks_module={module}"]
    assert main([*run, "--task", "users_text=medical", "--task", "users_kept"]) == 0
    sources = Manifest.load(tmp_path / "rows").sources
    assert {name: source.domain for name, source in sources.items()} == {
        "users_text": "medical",
        "users_kept": "general",
    }
    assert main([*run, "--set", "data.tasks={'users_kept': 'general'}", "--task", "users_text=medical"]) == 0
    assert "is already complete" in capsys.readouterr().out
    (tmp_path / "text").mkdir()
    for number in range(3):
        (tmp_path / "text" / f"{number}.txt").write_text(f"a text of {number}")
    assert main(["corpus", *run[1:], "--text", str(tmp_path / "text")]) == 0
    assert main([*run, "--task", "users_kept"]) == 0
    assert set(Manifest.load(tmp_path / "rows").sources) == {"text", "users_kept"}
    assert main([*run, "--task", "users_kept=poems"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "seqio task 'users_kept' names the domain 'poems', which is not in data.domains (general, medical)" in error


def test_our_sources_and_mixtures_are_registered(tmp_path):
    seqio, _ = import_seqio()
    written = [
        Document(f"{s}/{i}", f"text {i} of {s}", s, "en", "medical") for s in ("my-notes", "b") for i in range(50)
    ]
    write_corpus(tmp_path, written, heldout_share=0.1)
    registered = tasks.register(tmp_path)
    assert {source: task.name for source, task in registered.items()} == {"b": "m1_b", "my-notes": "m1_my_notes"}
    for split, folder in tasks.SPLITS.items():
        read = list(tasks.read_task(seqio.get_mixture_or_task("m1_my_notes"), "medical", split))
        expected = list(read_documents(tmp_path / folder / "my-notes.parquet"))
        assert [(d.record_id, d.text, d.language) for d in read] == [(d.id, d.text, d.language) for d in expected]
        assert [d.id for d in read] == [f"m1_my_notes#{number}" for number in range(1, len(read) + 1)]
    size = {"my-notes": 6, "b": 2}
    rows = tmp_path / "rows"
    manifest = toy_rows.pack_lengths(rows, {name: [length] * 10 for name, length in size.items()}, [16], 10)
    mixture = seqio_mixtures.register_mixture("users_stage", {"my-notes": 3.0, "b": 1.0}, manifest)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == pytest.approx({"m1_my_notes": 0.75 / 7, "m1_b": 0.25 / 3})
    assert seqio.get_mixture_or_task("users_stage") is mixture
    drawn = (
        mixture.get_dataset(None, split="train", shuffle=False, num_epochs=None, seed=0).take(300).as_numpy_iterator()
    )
    lengths = [len(example["targets"]) for example in drawn]
    assert len(set(lengths)) > 1
    seqio.TaskRegistry.remove("m1_b")
    with pytest.raises(UserError, match="m1_b' is not registered"):
        seqio_mixtures.register_mixture("users_stage", {"b": 1.0}, manifest)


def test_reading_rows_imports_no_tensorflow():
    program = (
        "import sys, m1jax.text.seqio_tasks, m1jax.rows.packing, m1jax.curriculum.loader, m1jax.verbs.pack; "
        "assert not {'seqio', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
