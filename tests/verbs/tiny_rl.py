"""ELO, then PPO, for the model of tests/tiny.py: four iterations of one step and four of two."""

from ml_collections import ConfigDict

from tests.verbs import tiny_sft


def get_config():
    config = tiny_sft.get_config().to_dict()
    config["objective"] = "policy"
    config["optimizer"] |= {"weight_decay": 0.0}
    config["policy"] = {
        "methods": {"elo": "elo", "ppo": "ppo"}, "prompts": 4, "samples": 4, "slots": 8, "max_new_tokens": 8,
        "epochs": 2, "rewards": {"exact": 1.0, "form": 0.1}, "heldout_prompts": 8, "max_mismatch": 0.001,
    }  # fmt: skip
    config["train"] |= {"checkpoint_every": 4, "validate_every": 4, "log_every": 1}
    rate = {"start": 1e-2, "end": 1e-2}
    stage = config["stages"][0] | {"row_length": 128, "global_batch": 8, "tokens": 4 * 2 * 1024, "learning_rate": rate}
    config["stages"] = tuple(stage | {"name": name} for name in ("elo", "ppo"))
    return ConfigDict(config)
