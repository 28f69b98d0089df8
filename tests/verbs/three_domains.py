"""The tiny road for a team of three kinds of text: a config with other names, and nothing else."""

from ml_collections import ConfigDict

from tests import tiny

DOMAINS = ("radiology", "pathology", "guidelines")
MIXTURES = (
    {"domain:radiology": 1.0},
    {"domain:radiology": 0.25, "domain:pathology": 0.75},
    {"domain:pathology": 0.5, "domain:guidelines": 0.5},
)


def get_config():
    config = tiny.get_config().to_dict()
    config["data"] |= {"domains": DOMAINS, "row_lengths": (64,)}  # one program to compile
    config["model"]["num_layers"] = 2
    config["train"]["checkpoint_every"] = 100
    for stage, mixture in zip(config["stages"], MIXTURES, strict=True):
        stage |= {"mixture": mixture, "row_length": 64, "tokens": 4 * 512}
    return ConfigDict(config)
