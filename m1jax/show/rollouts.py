"""A run of policy optimisation as a picture: rewards, the divergence from the reference, and lengths."""

from pathlib import Path

from m1jax.config import RunConfig
from m1jax.errors import UserError


def plot(config: RunConfig, path: Path) -> None:
    """Draws held-out rewards by stage with 95% intervals over the rewards of the iterations, and KL and lengths.

    Raises UserError where the run has no metrics, and where matplotlib is not installed.
    """
    from m1jax.rollouts.loop import SAMPLES
    from m1jax.train.hooks.journal import read_journal
    from m1jax.train.run import records

    lines = [line for line in read_journal(config.journal / "metrics.jsonl") if "reward" in line]
    if not lines:
        raise UserError(f"{config.journal} holds no iterations: run `m1 rl` first.")
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'm1jax[quickstart]'.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = list(dict.fromkeys(line["stage"] for line in lines))
    size = 5.0 * len(stages), 6.0
    figure, axes = plt.subplots(2, len(stages), figsize=size, squeeze=False, sharex="col", layout="constrained")
    measured = records.read(config.journal / SAMPLES)
    for column, stage in enumerate(stages):
        own = [line for line in lines if line["stage"] == stage]
        above, below = axes[:, column]
        above.plot([line["step"] for line in own], [line["reward"] for line in own], color="0.75", label="rollouts")
        held = [line for line in measured if line["stage"] == stage]
        above.errorbar(
            [line["step"] for line in held],
            [line["heldout_reward"] for line in held],
            [1.96 * line["heldout_reward_error"] for line in held],
            fmt="o-", color="tab:red", capsize=3, label="held-out prompts",
        )  # fmt: skip
        method = config.policy.method(stage)
        above.set_title(method if stage == method else f"stage {stage} ({method})")
        above.set_ylabel("reward" if method != "elo" else "log p(answer), nats")
        above.legend(fontsize=8)
        below.plot([line["step"] for line in own], [line["rollout_kl"] for line in own], label="KL, nats a token")
        if config.policy.max_kl:
            below.axhline(config.policy.max_kl, color="0.5", linewidth=0.8, linestyle="--", label="policy.max_kl")
        below.legend(fontsize=8, loc="lower right")
        below.set_xlabel("step")
        below.set_ylabel("KL to the reference, nats a token")
        other = below.twinx()
        other.plot([line["step"] for line in own], [line["length"] for line in own], color="tab:green", alpha=0.5)
        other.set_ylabel("tokens an answer", color="tab:green")
    figure.savefig(path, dpi=110)
