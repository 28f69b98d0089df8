from m1jax.config import file as config_file
from m1jax.verbs.quickstart import available_mixtures

QUICKSTART = config_file.load("quickstart")


def test_a_whole_corpus_needs_no_override():
    sources = {"wordnet": "general", "gcide": "general", "mondo": "medical"}
    assert available_mixtures(QUICKSTART, sources) == []


def test_what_is_missing_is_left_out_and_a_stage_left_with_nothing_reads_all():
    # No apt-get (no wordnet), and a folder of one's own text without a medical part.
    assert available_mixtures(QUICKSTART, {"poetry": "general", "mondo": "medical"}) == [
        "stages.0.mixture={'domain:general': 0.5}"
    ]
    overrides = available_mixtures(QUICKSTART, {"letters": "general"})
    config = config_file.load("quickstart", overrides)
    assert [dict(stage.mixture) for stage in config.stages] == [
        {"domain:general": 0.5},
        {"domain:general": 0.25},
        {"domain:general": 1.0},
    ]
