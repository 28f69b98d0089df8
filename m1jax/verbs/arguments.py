"""Arguments that several verbs take, and the objects made from them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m1jax.config import RunConfig, seeds
from m1jax.errors import UserError

if TYPE_CHECKING:  # they load JAX
    from m1jax.generate import LanguageModel
    from m1jax.generate.sampling import Sampling
    from m1jax.parallel.processes import Processes
    from m1jax.tokenizer import Tokenizer

CONFIG = "--config configs/quickstart.py"
"""The config of the examples."""
Parser = argparse.ArgumentParser


def example(parser: Parser, *commands: str) -> None:
    """Shows these commands at the end of the help."""
    parser.epilog = "\n".join(["example:", *(f"  {command}" for command in commands)])


def add_text(parser: "Parser | argparse._MutuallyExclusiveGroup") -> None:
    """Adds --text."""
    parser.add_argument(
        "--text", metavar="DIR", help="folder of your own .txt, .jsonl or .parquet files, instead of fetched text"
    )


def add_conversations(parser: "Parser | argparse._MutuallyExclusiveGroup") -> None:
    """Adds --conversations."""
    parser.add_argument(
        "--conversations", metavar="DIR", help="folder of .jsonl or .parquet files of conversations: see docs/sft.md"
    )


def add_preferences(parser: "Parser | argparse._MutuallyExclusiveGroup") -> None:
    """Adds --preferences."""
    parser.add_argument(
        "--preferences", metavar="DIR", help="folder of .jsonl or .parquet files of preferences: see docs/alignment.md"
    )


def add_json(parser: Parser, instead_of: str = "tables") -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help=f"print JSON instead of {instead_of}")


def add_config(parser: Parser, required: bool = True) -> None:
    """Adds --config and --set."""
    parser.add_argument("--config", required=required, metavar="FILE", help="config file, or the name of a shipped one")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the config, e.g. model.hidden=512; may be repeated",
    )


def config_of(args: argparse.Namespace, stage: str | None = None) -> RunConfig:
    """The run that --config and --set describe; of its stages only `stage` is checked where it is given."""
    from m1jax.config import file as config_file

    return config_file.load(args.config, args.overrides, stage)


def add_processes(parser: Parser) -> None:
    """Adds --coordinator, --processes and --process."""
    group = parser.add_argument_group(
        "several processes", "Detected on a TPU pod, under Slurm and under Open MPI; elsewhere give all three."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process", type=int, metavar="I", help="the number of this process, from 0")


def processes_of(args: argparse.Namespace) -> "Processes | None":
    """The processes that the arguments name, None where they name none; raises UserError for only some of the three."""
    given = (args.coordinator, args.processes, args.process)
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator, --processes and --process belong together: give all three, or none.")
    if args.coordinator is None:
        return None
    from m1jax.parallel.processes import Processes

    return Processes(*given)


def add_adapter(parser: Parser) -> None:
    """Adds --adapter."""
    parser.add_argument(
        "--adapter", metavar="DIR", help="a LoRA in PEFT's files, merged into the Hugging Face checkpoint of --model"
    )


def add_sampling(parser: Parser, max_new_tokens: int) -> None:
    """Adds --model and how tokens are drawn from it."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's folder, imported or exported")
    add_adapter(parser)
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest; 0 is all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest of mass P")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 discourages repetition"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="from 0 to 2^63 - 1")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="split the model over N devices")
    add_json(parser, "text")


def _seed(text: str) -> int:
    """A seed; raises ArgumentTypeError, which argparse prints."""
    try:
        return seeds.checked(int(text), "the seed")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def sampling_of(args: argparse.Namespace) -> "Sampling":
    """The sampling settings that the arguments give."""
    from m1jax.generate.sampling import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty)


def opened(
    folder: str, tensor: int = 1, dtype: str | None = None, adapter: str | None = None
) -> "tuple[LanguageModel, Tokenizer]":
    """The model of a folder, split over `tensor` devices, with a LoRA merged, and its tokenizer.

    Raises UserError where one is missing.
    """
    from m1jax.loading import load
    from m1jax.parallel.mesh import over_tensor

    model, tokenizer = load(Path(folder), over_tensor(tensor), dtype, None if adapter is None else Path(adapter))
    if tokenizer is None:
        raise UserError(f"{folder} holds no tokenizer.json, so text cannot be read: put it beside config.json.")
    return model, tokenizer


def add_conversion(parser: Parser, verify_help: str) -> None:
    """Adds --dtype, --verify and --prompt."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="convert to it (default: keep each tensor's)")
    parser.add_argument("--verify", action="store_true", help=verify_help)
    parser.add_argument("--prompt", metavar="TEXT", help="compare logits on this text")
