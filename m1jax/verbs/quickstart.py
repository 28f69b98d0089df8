"""`m1 quickstart`: the public verbs, one after the other, each printed before it runs.

Every verb leaves a complete result or none and recognises its own, and training continues from its last checkpoint:
the same command, killed at any moment, continues where it stopped.
"""

import argparse
import shlex
import time
from collections.abc import Mapping, Sequence

from rich.rule import Rule

from m1jax import artefact
from m1jax.config import RunConfig
from m1jax.config import file as config_file
from m1jax.show import console as consoles
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_text, example
from m1jax.verbs.command import main

PROMPTS = (
    "Diabetes mellitus is a disease",
    "Pneumonia due to",
    "骨折",
)
QUESTIONS = 150
"""Questions of each set that are asked: all of them would take longer than the training."""
HELDOUT_TOKENS = 20_000


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 quickstart {CONFIG}")
    add_config(parser)
    add_text(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    return walk(args.config, args.overrides, args.text)


def commands(config: str, overrides: Sequence[str], text: str | None, folder: str) -> list[list[str]]:
    """The verbs of the road after the corpus, in order, as arguments of `m1`."""
    run = ["--config", config, *(part for override in overrides for part in ("--set", override))]
    # Questions are part of the fetched packages; your own text has none.
    questions = ["--tasks"] if text else ["--limit", str(QUESTIONS)]
    heldout = ["--heldout-tokens", str(HELDOUT_TOKENS)]
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    generate = ["generate", "--model", folder, *prompts, "--max-new-tokens", "40"]
    return [
        ["tokenizer", "train", *run],
        ["pack", *run],
        ["curriculum", *run],
        ["eval", *run, "--step", "0", "--tasks", *heldout],
        ["train", *run],
        ["eval", *run, *questions, *heldout],
        generate,
        [*generate, "--temperature", "0.8", "--seed", "1"],
        ["export", "--model", folder, "--out", f"{folder}/export", "--verify"],
        ["report", *run],
    ]


def available_mixtures(config: RunConfig, sources: Mapping[str, str]) -> list[str]:
    """Overrides for the stages whose mixture names what this corpus lacks; `sources` maps source to domain.

    A machine without one of the registries' clients, or with your own text, has fewer sources than the
    config names: what is there is kept, and a stage left with nothing reads everything.
    """
    domains = sorted(set(sources.values()))
    known = {*sources, *(f"domain:{domain}" for domain in domains)}
    overrides = []
    for i, stage in enumerate(config.stages):
        if not set(stage.mixture) <= known:
            kept = {key: weight for key, weight in stage.mixture.items() if key in known and weight > 0}
            kept = kept or {f"domain:{domain}": 1.0 for domain in domains}
            overrides.append(f"stages.{i}.mixture={kept}")
    return overrides


def walk(config: str, overrides: Sequence[str], text: str | None) -> int:
    """Runs every verb as the command does; returns the first status that is not 0, else 0."""
    console = consoles.make()
    start = time.monotonic()

    def verb(arguments: list[str]) -> int:
        console.print(Rule(style="dim"))
        console.print(
            f"[dim]{time.monotonic() - start:6.0f} s[/] [bold]$ m1 {shlex.join(arguments)}[/]", soft_wrap=True
        )
        return main(arguments)

    plan = config_file.load(config, overrides)
    given = [part for override in overrides for part in ("--set", override)]
    status = verb(["corpus", "--config", config, *given, *(["--text", text] if text else [])])
    if status:
        return status
    sources = {
        name: entry["domain"] for name, entry in artefact.require(plan.corpus, "corpus", "corpus")["sources"].items()
    }
    overrides = [*overrides, *available_mixtures(plan, sources)]
    for arguments in commands(config, overrides, text, plan.folder):
        status = verb(arguments)
        if status:
            return status
    console.print(f"\nAll steps took {time.monotonic() - start:.0f} s in this process.")
    return 0
