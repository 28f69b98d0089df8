"""One stage of fine-tuning for the model of tests/tiny.py."""

from ml_collections import ConfigDict

from tests import tiny


def get_config():
    config = tiny.get_config().to_dict()
    config["data"] = {"vocab_size": 512, "row_lengths": (128,), "packing_window": 64, "heldout_share": 0.1}
    config["train"] |= {"validate_every": 3, "validate_tokens": 10**6}
    stage = config["stages"][-1] | {"name": "sft", "mixture": {"domain:text": 1.0}, "tokens": 6 * 1024}
    config["stages"] = (stage,)
    return ConfigDict(config)
