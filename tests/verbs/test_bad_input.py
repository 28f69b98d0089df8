"""Every mistake gets one sentence, exit status 2 and no traceback, and leaves nothing that reads as whole."""

import json
import shutil
import subprocess
import zlib

import pytest

from m1jax.verbs import main
from tests import texts
from tests.verbs.conftest import PROGRAM, TINY


def refused(capsys, arguments, *words):
    """Runs the command; asserts that it refused in one sentence that holds the words."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse
            status = end.code
    err = capsys.readouterr().err
    message = [line for line in err.splitlines() if line.startswith("m1: ")]
    assert status == 2, err
    assert len(message) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert str(word) in message[0], message[0]


def verb(name, folder, *overrides):
    sets = [part for override in (f"folder={folder}", *overrides) for part in ("--set", override)]
    return [*name.split(), "--config", TINY, *sets]


@pytest.fixture
def copy(road, tmp_path):
    """The finished road, to be damaged."""
    return shutil.copytree(road, tmp_path / "run")


def test_wrong_words(capsys, tmp_path):
    refused(capsys, ["trian"], "trian", "--help")
    refused(capsys, ["train"], "--config")
    refused(capsys, ["train", "--config", "nowhere.py"], "nowhere.py", "quickstart")
    refused(capsys, verb("train", tmp_path, "model.widow=3"), "model.widow", "model.window")
    refused(capsys, verb("train", tmp_path, "model.window=0"), "model.window", "at least 1")
    refused(capsys, verb("train", tmp_path, "model.num_heads=5"), "num_heads = 5", "does not divide")


@pytest.mark.parametrize(
    ("name", "missing"),
    [("tokenizer train", "corpus"), ("pack", "corpus"), ("curriculum", "pack"), ("train", "pack"), ("eval", "corpus")],
)
def test_a_step_of_the_road_left_out_is_named(capsys, tmp_path, name, missing):
    refused(capsys, verb(name, tmp_path), tmp_path, f"run `m1 {missing}` first")


def test_a_corpus_with_less_of_no_source(capsys, tmp_path):
    refused(capsys, verb("corpus", tmp_path, "data.source_bytes={'poesy': 1}"), "source_bytes.poesy", "poetry")
    refused(capsys, verb("corpus", tmp_path, "data.source_bytes={'poetry': 0}"), "at least 1")


def test_a_corpus_without_text(capsys, tmp_path):
    out = tmp_path / "run"
    refused(capsys, [*verb("corpus", out), "--text", str(tmp_path / "nothing")], "nothing", "is no folder")
    (tmp_path / "empty").mkdir()
    refused(capsys, [*verb("corpus", out), "--text", str(tmp_path / "empty")], "empty", "holds no .txt")
    (tmp_path / "empty" / "blank.txt").write_text("  \n")
    refused(capsys, [*verb("corpus", out), "--text", str(tmp_path / "empty")], "every document was set aside")
    (tmp_path / "empty" / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    refused(capsys, [*verb("corpus", out), "--text", str(tmp_path / "empty")], "broken.parquet")
    assert not out.exists() or not list(out.iterdir())


def test_a_folder_of_somebody_else_stays(capsys, tmp_path):
    text = texts.write(tmp_path / "text", count=5)
    (tmp_path / "run" / "corpus").mkdir(parents=True)
    (tmp_path / "run" / "corpus" / "thesis.txt").write_text("mine")
    refused(capsys, [*verb("corpus", tmp_path / "run"), "--text", str(text)], "is not an m1jax corpus")
    assert (tmp_path / "run" / "corpus" / "thesis.txt").read_text() == "mine"


def test_damaged_documents_and_rows(capsys, copy):
    (parquet,) = (copy / "corpus" / "documents").glob("medical*.parquet")
    parquet.write_bytes(parquet.read_bytes()[:-40])
    shutil.rmtree(copy / "rows")
    refused(capsys, verb("pack", copy), parquet)
    assert not (copy / "rows").exists()


def test_a_checkpoint_whose_config_an_older_version_wrote(capsys, copy):
    path = max((copy / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name)) / "meta" / "metadata"
    stored = json.loads(path.read_text())
    meta = json.loads(stored["text"])
    meta["run"]["data"]["general_vocab_size"] = 385
    text = json.dumps(meta)
    path.write_text(json.dumps({**stored, "text": text, "crc32": zlib.crc32(text.encode())}))
    generate = ["generate", "--model", str(copy), "--prompt", "In"]
    refused(capsys, generate, copy, "is of another version of m1jax", "data.general_vocab_size", "`m1 export`")


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone"])
def test_damaged_array_records(capsys, copy, damage):
    shutil.rmtree(copy / "checkpoints")
    (record,) = (copy / "rows" / "rows" / "64").glob("general*.array_record")
    if damage == "gone":
        record.unlink()
    else:
        whole = record.read_bytes()
        record.write_bytes(whole[: len(whole) // 2] if damage == "cut" else bytes(len(whole)))
    refused(capsys, verb("train", copy), record)


def test_a_mixture_that_names_no_source(capsys, copy):
    refused(capsys, verb("curriculum", copy, "stages.0.mixture={'wikipedia': 1}"), "wikipedia", "general")


def test_a_tokenizer_too_large_for_the_model(capsys, copy):
    refused(capsys, verb("train", copy, "model.vocab_size=400", "data.vocab_size=390"), "at least 512")
    refused(capsys, ["export", "--model", str(copy / "corpus"), "--out", "x"], "no checkpoints")


def test_a_batch_that_devices_do_not_divide(capsys, copy):
    # Eight virtual devices (tests/conftest.py).
    refused(capsys, verb("train", copy, "stages.1.global_batch=6"), "stages.1.global_batch = 6", "8 devices")
    refused(capsys, verb("train", copy, "mesh.tensor=3"), "tensor 3", "8 devices")


def test_a_checkpoint_of_another_configuration(capsys, copy):
    refused(capsys, verb("train", copy, "model.ffn=64"), "ffn = 48", "the config says 64")
    refused(capsys, verb("train", copy, "seed=5"), "seed was 0, is 5")
    refused(capsys, verb("eval", copy, "model.ffn=64"), "ffn = 48")


def test_a_damaged_checkpoint(capsys, copy):
    newest = max((p for p in (copy / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    refused(capsys, ["generate", "--model", str(copy), "--prompt", "In"], newest, "cannot be read")


def test_folders_that_hold_no_model(capsys, tmp_path):
    refused(capsys, ["generate", "--model", str(tmp_path), "--prompt", "In"], tmp_path, "neither")
    (tmp_path / "config.json").write_text("{")
    refused(capsys, ["generate", "--model", str(tmp_path), "--prompt", "In"], "config.json")


def test_unknown_questions_and_settings(capsys, copy):
    refused(capsys, [*verb("eval", copy), "--tasks", "riddles"], "riddles", "medqa")
    refused(capsys, [*verb("eval", copy), "--step", "3"], "no checkpoint of step 3")
    refused(capsys, ["generate", "--model", str(copy), "--prompt", ""], "empty")
    refused(capsys, ["generate", "--model", str(copy), "--prompt", "In", "--temperature", "-1"], "temperature")


@pytest.mark.slow
def test_a_disk_that_fills(road, tmp_path):
    """On a real full disk: a small tmpfs, which only root may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        for part in ("corpus", "tokenizer", "rows"):
            shutil.copytree(road / part, disk / "run" / part)
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(max(0, free - 60_000)))
        for name in ("train", "pack"):
            overrides = ["seed=1"] if name == "pack" else []
            end = subprocess.run([*PROGRAM, *verb(name, disk / "run", *overrides)], capture_output=True, text=True)
            assert end.returncode == 2, end.stderr
            assert "is full: free some space" in end.stderr
            assert "Traceback" not in end.stderr
        assert not [path for path in (disk / "run" / "checkpoints").glob("*") if path.name.isdigit()]
        assert not (disk / "run" / ".rows.partial").exists()
        (disk / "filler").unlink()
        subprocess.run([*PROGRAM, *verb("train", disk / "run")], check=True, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run(["umount", disk], check=True)
