"""The plain PyTorch model that an export carries, so that transformers load it without m1jax.

The files beside this one are copied into the export as they are; they import torch and transformers alone, and
nothing of m1jax imports them.
"""

import shutil
from pathlib import Path

FILES = ("configuration_m1.py", "cache_m1.py", "modeling_m1.py")
AUTO_MAP = {
    "AutoConfig": "configuration_m1.BaichuanM1Config",
    "AutoModel": "modeling_m1.BaichuanM1Model",
    "AutoModelForCausalLM": "modeling_m1.BaichuanM1ForCausalLM",
}
"""What config.json says under `auto_map`, by which `from_pretrained(..., trust_remote_code=True)` finds the classes."""


def write(folder: Path) -> None:
    """Copies the model's source files into an existing folder."""
    for name in FILES:
        shutil.copyfile(Path(__file__).parent / name, folder / name)
