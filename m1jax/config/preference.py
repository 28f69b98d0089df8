"""What learning from preferences minimises (m1jax.objectives.preference)."""

from dataclasses import dataclass

from m1jax.config.stages import bounded

LOSSES = ("tdpo2", "tdpo1", "dpo")


@dataclass(frozen=True)
class PreferenceConfig:
    """Settings of the objective `preference`; the formulas are in m1jax/objectives/preference.py."""

    loss: str = bounded(choices=LOSSES, default="tdpo2")
    """tdpo1, tdpo2: Zeng et al., arXiv 2404.11999; dpo: Rafailov et al., arXiv 2305.18290."""
    beta: float = bounded(0.0, default=0.1)
    """How strongly the policy is held to the reference."""
    alpha: float = bounded(0.0, default=0.5)
    """Weight of the divergences in tdpo2."""
