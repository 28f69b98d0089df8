"""Validation while `m1 train` runs, on a small road: by source, on the live parameters, one program a row length."""

import pytest

from m1jax import tokenizer as tokenizers
from m1jax.config import file as config_file
from m1jax.evaluate import bits, heldout
from m1jax.evaluate.trained import target_logprobs
from m1jax.loading import of_config
from m1jax.train.hooks.journal import read_journal
from m1jax.verbs import main
from m1jax.verbs.train import train
from tests.train import probe
from tests.verbs.conftest import TINY

TOKENS = 200


def settings(road, folder, *more):
    given = [f"data.{name}={road / name}" for name in ("corpus", "tokenizer", "rows")]
    return [f"folder={folder}", *given, "train.validate_every=8", f"train.validate_tokens={TOKENS}", *more]


@pytest.fixture(scope="module")
def validated(road, tmp_path_factory):
    """A run with validation: its config, its lines, and how often the scoring program was lowered."""
    config = config_file.load(TINY, settings(road, tmp_path_factory.mktemp("validated") / "run"))
    with probe.compilations() as counts:
        train(config)
    return config, read_journal(config.journal / "metrics.jsonl"), counts


def test_each_source_is_measured_every_so_many_steps_and_at_the_end(validated):
    config, lines, counts = validated
    measured = {line["step"]: line for line in lines if "heldout_loss" in line}
    assert list(measured) == [8, 16, 18]
    sources = {name.partition("/")[2] for name in lines[-1] if name.startswith("heldout_bits_per_byte/")}
    assert sources and sources == {name.partition("/")[2] for name in lines[-1] if name.startswith("heldout_loss/")}
    assert measured[18]["heldout_loss"] < measured[8]["heldout_loss"]
    # Two row lengths, and a second measurement at one of them.
    assert counts["jit(score)"] == len({stage.row_length for stage in config.stages}) == 2


def test_it_measures_what_an_evaluation_of_the_checkpoint_does(validated):
    config, lines, _ = validated
    tokenizer = tokenizers.of_run(config)
    documents = heldout.encoded(config.corpus, tokenizer, min(config.data.row_lengths))
    trained = of_config(config, None)
    found = bits.bits_per_byte(
        documents,
        target_logprobs(trained.config.model, trained.params, trained.rope_base),
        tokenizer.token_bytes,
        row_length=config.stages[-1].row_length,
        batch_rows=8,
        max_tokens=TOKENS,
    )
    for source, measured in found.items():
        assert lines[-1][f"heldout_bits_per_byte/{source}"] == pytest.approx(measured.per_byte, rel=1e-5)
        assert lines[-1][f"heldout_loss/{source}"] == pytest.approx(measured.loss(), rel=1e-5)


def test_validation_changes_no_step(validated, road):
    _, lines, _ = validated
    plain = read_journal(road / "train" / "metrics.jsonl")
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]


def test_without_held_out_text_it_is_refused_before_a_step(road, tmp_path, capsys):
    more = [f"data.corpus={tmp_path / 'nowhere'}"]
    arguments = [part for setting in settings(road, tmp_path / "run", *more) for part in ("--set", setting)]
    assert main(["train", "--config", TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and "heldout" in error
    assert not (tmp_path / "run" / "checkpoints").exists()
