"""One stage of learning from preferences for the model of tests/tiny.py."""

from tests.verbs import tiny_sft


def get_config():
    config = tiny_sft.get_config()
    config.objective = "preference"
    config.stages[0]["name"] = "preferences"
    return config
