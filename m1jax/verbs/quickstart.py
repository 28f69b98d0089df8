"""`m1 quickstart`: the public verbs, one after the other, each printed before it runs.

Every verb leaves a complete result or none and recognises its own, and training continues from its last checkpoint:
the same command, killed at any moment, continues where it stopped.
"""

import argparse
import dataclasses
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.rule import Rule

from m1jax import artefact
from m1jax.config import RunConfig
from m1jax.config import file as config_file
from m1jax.errors import UserError
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
SAMPLES = 3
"""Answers of the assistant that are shown."""
ADAPTED = "quickstart_config.py"
"""File of the run's folder with a config whose mixtures fit the text."""


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 quickstart {CONFIG}")
    add_config(parser)
    add_text(parser)
    parser.add_argument(
        "--sft", metavar="FILE", help="config with which the model is then fine-tuned on questions out of ontologies"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    return walk(args.config, args.overrides, args.text, args.sft)


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


def fine_tuning(config: str, overrides: Sequence[str], sft: str, folder: str) -> list[list[str]]:
    """The verbs that make an assistant of the model in `folder`, and ask both about entities held out."""
    questions, tuned = f"{folder}/synthesis", f"{folder}/sft"
    given = ["--config", config, *(part for override in overrides for part in ("--set", override))]
    other = ["--config", sft, "--set", f"folder={tuned}", "--set", f"train.initial={folder}"]
    # So small a model cannot choose from a list; it can tell likely answers from unlikely ones.
    against = ["--form", "chat-cloze", "--against", folder, "--against-form", "base"]
    return [
        ["synthesize", *given, "--out", questions],
        ["sft", *other, "--conversations", f"{questions}/train"],
        ["eval", "--model", tuned, "--questions", f"{questions}/test", *against, "--samples", str(SAMPLES)],
    ]


def _check_fine_tuning(asked: RunConfig, sft: str) -> None:
    """Raises UserError, before anything runs, where the second config cannot go on from the first one's model."""
    if config_file.load(sft).model != asked.model:
        raise UserError(
            f"{sft} has another model than the run that it would fine-tune: give both configs the same `model`."
        )


def adapted(config: RunConfig, sources: Mapping[str, str]) -> RunConfig:
    """The config with mixtures of what this corpus has; `sources` maps source to domain.

    Without one of the registries' clients, or with your own text, there are fewer sources than the config names: a
    mixture keeps those that exist, and a stage left with none reads everything.
    """
    domains = sorted(set(sources.values()))
    known = {*sources, *(f"domain:{domain}" for domain in domains)}
    stages = []
    for stage in config.stages:
        if not set(stage.mixture) <= known:
            kept = {key: weight for key, weight in stage.mixture.items() if key in known and weight > 0}
            stage = dataclasses.replace(stage, mixture=kept or {f"domain:{domain}": 1.0 for domain in domains})
        stages.append(stage)
    return dataclasses.replace(config, stages=tuple(stages))


def walk(config: str, overrides: Sequence[str], text: str | None, sft: str | None = None) -> int:
    """Runs every verb as the command does; returns the first status that is not 0, else 0."""
    console = consoles.make()
    start = time.monotonic()

    def verb(arguments: list[str]) -> int:
        console.print(Rule(style="dim"))
        console.print(
            f"[dim]{time.monotonic() - start:6.0f} s[/] [bold]$ m1 {shlex.join(arguments)}[/]", soft_wrap=True
        )
        return main(arguments)

    asked = config_file.load(config, overrides)
    if sft:
        _check_fine_tuning(asked, sft)
    given = [part for override in overrides for part in ("--set", override)]
    status = verb(["corpus", "--config", config, *given, *(["--text", text] if text else [])])
    if status:
        return status
    sources = {
        name: entry["domain"] for name, entry in artefact.require(asked.corpus, "corpus", "corpus")["sources"].items()
    }
    fitting = adapted(asked, sources)
    if fitting != asked:
        file = Path(asked.folder) / ADAPTED
        config_file.save(
            fitting, file, f"{config} with mixtures of what {asked.corpus} has, as `m1 quickstart` wrote it."
        )
        console.print(
            f"Mixtures of {config} name text that this corpus does not have: the config that fits is {file}.",
            soft_wrap=True,
        )
        config, overrides = str(file), []
    road = commands(config, overrides, text, asked.folder)
    if sft:
        road += fine_tuning(config, overrides, sft, asked.folder)
    for arguments in road:
        status = verb(arguments)
        if status:
            return status
    console.print(f"\nAll steps took {time.monotonic() - start:.0f} s in this process.")
    return 0
