"""Verbs of a trained model: generate, chat, import, export."""

import argparse
from typing import Any

from m1jax.verbs.arguments import Parser, add


def register(verbs: Any) -> None:
    """Adds the verbs to the command."""
    example = 'm1 generate --model runs/quickstart --prompt "Asthma is" --temperature 0.8'
    sub = add(verbs, "generate", "continue prompts", example, _generate, config=False)
    sub.add_argument(
        "--prompt", dest="prompts", action="append", default=[], help="- is standard input; may be repeated"
    )
    sub.add_argument("--prompt-file", dest="files", action="append", default=[], metavar="FILE", help="may be repeated")
    sub.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    _sampling_arguments(sub, max_new_tokens=64)

    example = "m1 chat --model runs/quickstart --temperature 0.7 --top-p 0.9"
    sub = add(verbs, "chat", "talk with a model, one line a turn", example, _chat, config=False)
    sub.add_argument("--system", metavar="TEXT", help="what the model is told first, instead of the usual sentence")
    _sampling_arguments(sub, max_new_tokens=512)

    example = "m1 import --from downloaded --out models/m1 --verify"
    sub = add(verbs, "import", "read a Hugging Face checkpoint", example, _import, config=False)
    sub.add_argument("--from", dest="source", required=True, metavar="DIR", help="config.json and weights")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for generate, export and train.initial")
    _conversion_arguments(sub, "read every tensor back and compare it; with --prompt also logits")

    example = "m1 export --model runs/quickstart --out exported --verify"
    sub = add(verbs, "export", "write a checkpoint in the reference layout", example, _export, config=False)
    sub.add_argument("--model", required=True, metavar="DIR", help="a run's folder or an imported model")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder of config.json, weights, tokenizer")
    sub.add_argument("--format", choices=("hf", "torch"), default="hf", help="safetensors (default) or torch.save")
    sub.add_argument("--shard-size", default="5GB", metavar="SIZE", help="most bytes of a file (default: 5GB)")
    _conversion_arguments(sub, "compare every tensor, and with another program the logits")


def _conversion_arguments(parser: Parser, verify_help: str) -> None:
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="convert to it (default: keep each tensor's)")
    parser.add_argument("--verify", action="store_true", help=verify_help)
    parser.add_argument("--prompt", metavar="TEXT", help="compare logits on this text")


def _sampling_arguments(parser: Parser, max_new_tokens: int) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's folder, imported or exported")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest; 0 is all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest of mass P")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P times the likeliest")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 shuns repetition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="split the model over N devices")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _sampling(args: argparse.Namespace) -> Any:
    from m1jax.generate.sampling import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty)


def _generate(args: argparse.Namespace) -> int:
    from m1jax.verbs import generate as generation

    return generation.run(
        args.model,
        args.prompts,
        args.files,
        max_new_tokens=args.max_new_tokens,
        sampling=_sampling(args),
        stop=args.stop,
        seed=args.seed,
        tensor=args.tensor,
        as_json=args.json,
    )


def _chat(args: argparse.Namespace) -> None:
    from m1jax.tokenizer import DEFAULT_SYSTEM
    from m1jax.verbs import chat

    chat.run(
        args.model,
        system=DEFAULT_SYSTEM if args.system is None else args.system,
        max_new_tokens=args.max_new_tokens,
        sampling=_sampling(args),
        seed=args.seed,
        tensor=args.tensor,
        as_json=args.json,
    )


def _import(args: argparse.Namespace) -> None:
    from m1jax.verbs import importing

    importing.run(args.source, args.out, dtype=args.dtype, verify=args.verify, prompt=args.prompt)


def _export(args: argparse.Namespace) -> None:
    from m1jax.verbs import export

    export.run(
        args.model,
        args.out,
        verify=args.verify,
        dtype=args.dtype,
        form=args.format,
        shard_size=args.shard_size,
        prompt=args.prompt,
    )
