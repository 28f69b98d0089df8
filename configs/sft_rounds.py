"""Fine-tunes a model in five rounds, one stage each: general data, then medical kinds, as Baichuan-M1 was.

Conversations are in folders that are named after their kinds, such as my_conversations/reasoning/. Edit the names at
the top: the config file of your model, the kinds of conversations that you have, and what each round reads of them.
`m1 curriculum` shows what a round reads; a source that would be read more often than `data.max_epochs` is refused with
its numbers, so that too few conversations are noticed before a step.

The report (arXiv 2502.12671) names five rounds, these kinds and a cosine from 2e-5. Which round reads which kind, the
shares, the sizes and the end of the cosine are undisclosed: they are our choice.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

BASE = "m1_14b_sft.py"
"""The config of which this one is: model, `train.initial`, devices, optimiser, and rows and batch of its last stage."""
GENERAL = {"inhouse": 0.4, "maths": 0.3, "code": 0.3}
REPLAY = 0.25
"""Share of the general kinds in every medical round, so that they are not forgotten."""
ROUNDS = {
    "general": GENERAL,
    "knowledge": {"knowledge": 0.6, "understanding": 0.4},
    "reasoning": {"reasoning": 0.7, "knowledge": 0.3},
    "long_context": {"long_context": 0.7, "reasoning": 0.3},
    "safety": {"safety": 0.6, "reasoning": 0.2, "understanding": 0.2},
}
MAX_EPOCHS = {"*": 3.0}
"""Times that any source may be read over all rounds; "domain:safety" for one kind."""
ROUND_TOKENS = 200_000_000


def mixture(name: str) -> dict[str, float]:
    """The shares of a round by domain, which add up to 1."""
    general = 0.0 if name == "general" else REPLAY
    shares = {kind: share * general for kind, share in GENERAL.items()}
    for kind, share in ROUNDS[name].items():
        shares[kind] = shares.get(kind, 0.0) + share * (1 - general)
    return {f"domain:{kind}": share for kind, share in shares.items() if share}


def get_config() -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name(BASE)))["get_config"]().to_dict()
    rows = {key: base["stages"][-1][key] for key in ("row_length", "global_batch", "rope_base", "skip_steps")}
    rate = {"start": 2e-5, "end": 2e-6, "shape": "cosine", "warmup_steps": 5}
    kinds = dict.fromkeys(kind for shares in ROUNDS.values() for kind in shares)
    data = {"domains": tuple(kinds), "row_lengths": (rows["row_length"],), "max_epochs": MAX_EPOCHS}
    train = {"checkpoint_every": 50, "validate_every": 25, "validate_tokens": 2**17}
    base |= {
        "name": "sft_rounds",
        "folder": "runs/sft_rounds",
        "data": base["data"] | data,
        "train": base["train"] | train,
        "stages": tuple(
            {**rows, "name": name, "tokens": ROUND_TOKENS, "mixture": mixture(name), "learning_rate": rate}
            for name in ROUNDS
        ),
    }
    return ConfigDict(base)
