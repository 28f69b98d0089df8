"""Fine-tunes a model in five rounds, one stage each: general data, then medical kinds, as Baichuan-M1 was.

Conversations lie in folders that are named after their kinds, such as my_conversations/reasoning/. Edit the names at
the top: the model and its config file, the kinds of conversations that you have, and what each round reads of them.
`m1 curriculum` shows what a round reads; a source that would be read more often than `data.max_epochs` is refused with
its numbers, so that too few conversations are noticed before a step.

The report (arXiv 2502.12671) names five rounds, these kinds and a cosine from 2e-5. Which round reads which kind, the
shares, the sizes and the end of the cosine are undisclosed: they are our choice.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

MODEL = "m1_14b.py"
INITIAL = "runs/m1_14b"
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
ROW_LENGTH, ROWS = 32_768, 64


def mixture(name: str) -> dict[str, float]:
    """The shares of a round by domain, which add up to 1."""
    general = 0.0 if name == "general" else REPLAY
    shares = {kind: share * general for kind, share in GENERAL.items()}
    for kind, share in ROUNDS[name].items():
        shares[kind] = shares.get(kind, 0.0) + share * (1 - general)
    return {f"domain:{kind}": share for kind, share in shares.items() if share}


def get_config() -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name(MODEL)))["get_config"]()
    kinds = dict.fromkeys(kind for shares in ROUNDS.values() for kind in shares)
    stage = {
        "tokens": ROUND_TOKENS,
        "row_length": ROW_LENGTH,
        "global_batch": ROWS,
        "learning_rate": {"start": 2e-5, "end": 2e-6, "shape": "cosine", "warmup_steps": 5},
        "rope_base": base.stages[-1]["rope_base"],
        "skip_steps": False,
    }
    return ConfigDict(
        {
            "name": "sft_rounds",
            "folder": "runs/sft_rounds",
            "model": base.model.to_dict(),
            "data": {
                "domains": tuple(kinds),
                "vocab_size": base.data.vocab_size,
                "row_lengths": (ROW_LENGTH,),
                "max_epochs": MAX_EPOCHS,
                "heldout_share": 0.01,
            },
            "mesh": base.mesh.to_dict(),
            "hardware": base.hardware.to_dict(),
            "optimizer": {"eps": 1e-8, "weight_decay": 0.0},
            "train": {
                **base.train.to_dict(),
                "initial": INITIAL,
                "accumulation": 1,
                "checkpoint_every": 50,
                "validate_every": 25,
                "validate_tokens": 2**17,
            },
            "stages": tuple({**stage, "name": name, "mixture": mixture(name)} for name in ROUNDS),
        }
    )
