"""`m1 generate`: continues prompts with a trained model."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from m1jax.errors import UserError
from m1jax.recipes import console as consoles
from m1jax.recipes import jax_setup
from m1jax.recipes.loading import load


def run(
    folder: str,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    as_json: bool,
) -> None:
    """Prints each prompt and its continuation, which ends at the document's end or after `max_new_tokens`.

    Raises UserError for a folder without a model or tokenizer, an empty prompt, and settings out of range.
    """
    jax_setup.prepare()
    console = consoles.make(as_json)
    model, tokenizer = load(Path(folder))
    if tokenizer is None:
        raise UserError(f"{folder} holds no tokenizer.json, so text cannot be read: put it beside config.json.")
    start = time.perf_counter()
    new = model.generate(
        tokenizer.encode_batch(prompts),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        eos_id=tokenizer.eos_id,
    )
    texts = [tokenizer.decode(ids) for ids in new]
    if as_json:
        answers = [{"prompt": p, "text": t, "tokens": ids} for p, t, ids in zip(prompts, texts, new, strict=True)]
        print(json.dumps(answers, ensure_ascii=False))  # noqa: T201
        return
    for prompt, text in zip(prompts, texts, strict=True):
        console.print(Text.assemble((prompt, "bold"), text.rstrip()), soft_wrap=True)
        console.print()
    how = "greedy" if temperature == 0 else f"temperature {temperature}, seed {seed}"
    seconds = time.perf_counter() - start
    console.print(f"{sum(map(len, new))} tokens, {how}, {seconds:.1f} s with compilation.", style="dim")
