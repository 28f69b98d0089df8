"""Adapters (LoRA and its like) are a few matrices for a model that is elsewhere: they are refused by their name."""

import json
from pathlib import Path

from m1jax.errors import UserError

CONFIG = "adapter_config.json"
MERGE = (
    "merge it into its model first (a plain LoRA: `m1 import --from MODEL --adapter LORA`; in peft: merge_and_unload)"
)


def refuse(folder: Path) -> None:
    """Raises UserError where a folder holds an adapter, beside its model too, which would be read without it."""
    path = folder / CONFIG
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, base = f"a {content['peft_type']} adapter", content.get("base_model_name_or_path")
    except (ValueError, KeyError, TypeError, AttributeError):
        kind, base = "an adapter", None
    raise UserError(
        f"{folder} holds {kind} ({CONFIG}){f' of {base}' if base else ''}, which is no whole model: {MERGE}."
    )
