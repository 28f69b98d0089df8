"""What attention is for: a trained model is under the bigram, and not once its attention says nothing."""

import json
import shutil

import pytest

from m1jax.verbs import main
from tests.verbs.conftest import TINY


@pytest.mark.slow
def test_the_model_is_under_the_bigram_and_without_attention_it_is_not(road, tmp_path):
    for part in ("corpus", "tokenizer", "rows"):
        shutil.copytree(road / part, tmp_path / part)
    longer = [f"stages.{i}.tokens={tokens}" for i, tokens in enumerate((60 * 512, 60 * 512, 40 * 1024))]
    overrides = [f"folder={tmp_path}", "train.checkpoint_every=1000", *longer]
    run = ["--config", TINY, *(part for override in overrides for part in ("--set", override))]
    assert main(["train", *run]) == 0
    assert main(["eval", *run, "--tasks"]) == 0
    (results,) = (tmp_path / "eval").glob("*/results.json")
    found = {
        name: column["domains"]["medical"]["bits_per_byte"]
        for name, column in json.loads(results.read_text())["bits_per_byte"].items()
    }
    assert found["model"] < found["bigram"] < found["unigram"]
    assert found["no attention"] > found["bigram"]
