"""The whole road on text of our own, through the command, as a user walks it."""

import json
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import m1jax
from m1jax.evaluate import answers
from m1jax.parallel import measure
from m1jax.train.hooks.journal import TIMING, read_journal
from m1jax.verbs import main
from tests.verbs.conftest import PROGRAM, TINY, quickstart


def test_every_result_is_there_and_true(road):
    summary = json.loads((road / "summary.json").read_text())
    assert [stage["stage"] for stage in summary["stages"]] == ["general", "medical", "annealing"]
    assert all(stage["steps"] == 6 for stage in summary["stages"])
    assert summary["stages"][0]["last_loss"] < summary["stages"][0]["first_loss"]
    before = summary["before"]["bits_per_byte"]["model"]["domains"]
    after = summary["after"]["bits_per_byte"]["model"]["domains"]
    for domain in ("general", "medical"):
        assert after[domain]["bits_per_byte"] < before[domain]["bits_per_byte"]
        assert after[domain]["targets"] == before[domain]["targets"] > 0
    assert summary["export"]["agrees"]
    assert (road / "loss.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((road / "export" / "config.json").read_text())
    assert config["rope_theta"] == 1e5
    assert config["sliding_window_layers"] == [1, 3]


def test_the_road_walked_again_does_nothing(road, text, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in road.rglob("*") if path.name == "m1jax.json"}
    assert main(quickstart(road, text)) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert capsys.readouterr().out.count("is already complete") == 6


def test_a_bad_document_is_set_aside_and_counted(road):
    report = json.loads((road / "corpus" / "report.json").read_text())
    assert sum(report["rejected"].values()) == 1


def test_both_folders_load_and_agree(road):
    ours, tokenizer = m1jax.load(road)
    exported, same = m1jax.load(road / "export")
    assert tokenizer.fingerprint == same.fingerprint
    tokens = tokenizer.encode("Corpulitis is a disease of the heart") * 4  # past the window of 16
    np.testing.assert_array_equal(ours(tokens), exported(tokens))
    assert ours.generate(tokens, max_new_tokens=8) == exported.generate(tokens, max_new_tokens=8)


def test_a_run_and_its_export_answer_questions_alike(road, tmp_path):
    file = tmp_path / "q.jsonl"
    wards = ["North", "Harbour", "South"]
    records = [{"question": f"Where is case {n}?", "choices": wards, "answer": n % 3} for n in range(4)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    command = ["eval", "--model", str(road), "--questions", str(file), "--against", str(road / "export")]
    assert main([*command, "--out", str(out)]) == 0
    ours, theirs = answers.read(out / "q-base"), answers.read(out / "against" / "q-base")
    assert ours.scores == theirs.scores and ours.about["model"] != theirs.about["model"]


def test_on_disk_one_layer_is_one_chunk(road):
    (metadata,) = (road / "checkpoints" / "18" / "state" / "array_metadatas").iterdir()
    arrays = [entry["array_metadata"] for entry in json.loads(metadata.read_text())["array_metadatas"]]
    stacked = [array for array in arrays if array["param_name"].startswith("params.periods.")]
    assert len(stacked) == 2 * 11
    for array in stacked:
        assert array["write_shape"][0] == 2
        assert array["chunk_shape"] == [1, *array["write_shape"][1:]] or len(array["write_shape"]) == 1
    tables = [array for array in arrays if array["param_name"] in ("params.embed.weight", "params.head.weight")]
    assert len(tables) == 2
    assert all(array["chunk_shape"] == array["write_shape"] for array in tables)


def test_mfu_is_not_available_on_an_unknown_chip(road, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    for part in ("corpus", "tokenizer", "rows"):
        shutil.copytree(road / part, folder / part)
    monkeypatch.setattr(measure, "peak_flops", lambda device, dtype: None)
    monkeypatch.setattr(measure, "has_peak", lambda device: False)
    run = ["--config", TINY, "--set", f"folder={folder}"]
    assert main(["train", *run]) == 0
    said = capsys.readouterr().out
    assert said.count("MFU is n/a") == 1 and "MFU n/a" in said and "%" not in said.split("Trained.")[0]
    assert not any("mfu" in line for line in read_journal(folder / "train" / "metrics.jsonl"))
    assert main(["report", *run]) == 0
    assert "n/a" in capsys.readouterr().out
    assert {stage["mfu"] for stage in json.loads((folder / "summary.json").read_text())["stages"]} == {None}


def test_json_is_for_machines(road, capsys):
    assert main(["generate", "--model", str(road), "--prompt", "In", "--max-new-tokens", "3", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["prompt"] == "In"
    assert len(answer["tokens"]) <= 3
    run = ["--config", TINY, "--set", f"folder={road}", "--json"]
    assert main(["curriculum", *run]) == 0
    assert {use["stage"] for use in json.loads(capsys.readouterr().out)["uses"]} == {"general", "medical", "annealing"}
    assert main(["report", *run]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == m1jax.load(road)[0].config.num_parameters


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_to_the_same_end(road, text, tmp_path):
    folder = tmp_path / "run"
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([*PROGRAM, *quickstart(folder, text)], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(2, 14))
        process.send_signal(signal.SIGKILL)
        process.wait()
    # One kill that surely falls into training, once it has begun.
    process = subprocess.Popen([*PROGRAM, *quickstart(folder, text)], stdout=subprocess.DEVNULL)
    journal = folder / "train" / "metrics.jsonl"
    while process.poll() is None and len(read_journal(journal)) < 7:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*PROGRAM, *quickstart(folder, text)], check=True, stdout=subprocess.DEVNULL)
    lines, expected = (
        [{k: v for k, v in line.items() if k not in TIMING} for line in read_journal(where / "train/metrics.jsonl")]
        for where in (folder, road)
    )
    assert lines == expected
    for name in ("corpus/documents", "rows/rows/64", "export"):
        for path in (road / name).iterdir():
            if path.suffix in (".parquet", ".array_record", ".safetensors"):
                assert path.read_bytes() == (folder / name / path.name).read_bytes()
    assert not list(folder.rglob("*.partial"))
