"""`m1 export`: a run's newest checkpoint in the reference checkpoint's layout, and somebody else's word that it is."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from m1jax import artefact
from m1jax.convert import hf
from m1jax.convert.verify import Agreement, verify_with_mlx
from m1jax.errors import UserError
from m1jax.generate.engine import LanguageModel
from m1jax.recipes import console as consoles
from m1jax.recipes import jax_setup
from m1jax.recipes.loading import from_run, tokenizer_of

VERIFICATION = "verification.json"
# Longer than the window of the shipped small model, so that its edge is compared too.
VERIFIED_TOKENS = 320
TOLERANCE = 1e-3
"""Largest difference of a logit, over the largest logit, that passes for agreement in float32."""


def run(model_folder: str, out: str, verify: bool) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into `out`; does nothing if they are there.

    With `verify`, mlx-lm loads the folder and its logits are compared with ours on random tokens. Raises UserError
    for a folder without a checkpoint, an occupied `out`, and logits that disagree.
    """
    jax_setup.prepare()
    console = consoles.make()
    source, target = Path(model_folder), Path(out)
    trained = from_run(source)
    of = artefact.key(trained.key, verify)
    if artefact.is_whole(target, "export", of):
        console.print(f"{target} is whole already.")
        return
    details: dict[str, Any] = {"step": trained.step}
    with artefact.building(target, "export", of, details) as folder:
        tokenizer = tokenizer_of(source, trained.config)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
        hf.export(trained.params, trained.config.model, trained.rope_base, None, folder, ids)
        tokenizer.save(folder)
        if verify:
            ours = LanguageModel(trained.config.model, trained.rope_base, trained.params)
            prompts = np.random.default_rng(0).integers(384, tokenizer.vocab_size, (2, VERIFIED_TOKENS))
            found = verify_with_mlx(folder, prompts.tolist(), ours)
            sentence = _judge(found, out)
            record = {**dataclasses.asdict(found), "agrees": True, "sentence": sentence}
            (folder / VERIFICATION).write_text(json.dumps(record) + "\n", encoding="utf-8")
            console.print(sentence)
    console.print(f"Step {trained.step} exported to {target}: config.json, model.safetensors, tokenizer.json.")


def _judge(found: Agreement, out: str) -> str:
    """One sentence on the agreement; raises UserError where it is not one."""
    if not found.relative_difference < TOLERANCE:
        raise UserError(
            f"mlx-lm's logits differ from ours by {found.relative_difference:.1e} of the largest: {out} was not "
            f"written, please report this as a fault of m1jax."
        )
    return (
        f"mlx-lm loads the folder and agrees: over {found.tokens} tokens its logits differ by at most "
        f"{found.max_difference:.1e} ({found.relative_difference:.1e} of the largest), and the likeliest token is the "
        f"same at {found.greedy_agreement:.1%} of the positions."
    )
