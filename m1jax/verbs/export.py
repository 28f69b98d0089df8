"""`m1 export`: a run's newest checkpoint, or an imported model, in the reference layout, and its proof."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m1jax import artefact, disk
from m1jax.config import ModelConfig
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.show.progress import ByteBar
from m1jax.verbs.arguments import Parser, add_conversion, example

if TYPE_CHECKING:
    from m1jax.loading import Stored

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 export --model runs/quickstart --out exported --verify")
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's folder or an imported model")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of config.json, weights, tokenizer")
    parser.add_argument("--format", choices=("hf", "torch"), default="hf", help="safetensors (default) or torch.save")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="most bytes of a file (default: 5GB)")
    add_conversion(parser, "compare every tensor, and with another program the logits")
    group = parser.add_argument_group("a run with train.lora", "By default its factors are merged into the model.")
    group.add_argument("--adapter", action="store_true", help="write the factors alone, in PEFT's layout")
    group.add_argument(
        "--base", metavar="NAME", help="with --adapter: where PEFT finds the base model (default: train.initial)"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    if args.adapter:
        if args.verify or args.format != "hf":
            raise UserError("--adapter goes without --verify and --format: PEFT reads safetensors.")
        export_adapter(args.model, args.out, args.base, args.dtype)
        return
    if args.base is not None:
        raise UserError("--base names the base model of an adapter: give --adapter too.")
    export(args.model, args.out, args.verify, args.dtype, args.format, args.shard_size, args.prompt)


def export(
    model_folder: str,
    out: str,
    verify: bool = False,
    dtype: str | None = None,
    form: str = "hf",
    shard_size: str = "5GB",
    prompt: str | None = None,
) -> None:
    """Writes configs, weights and the files of tokenizer and PyTorch model into `out`; does nothing if they are there.

    With `verify` every tensor written is compared bit by bit with the parameter it came from, and another program loads
    the folder and compares logits, on `prompt` or random tokens. Raises UserError for a folder without a model, an
    `out` that holds something else, and a comparison that fails.
    """
    # They load JAX, which takes seconds: not for `m1 export --help`.
    from m1jax import loading
    from m1jax.convert import agreement, hf, merging, tokenizer_files, writing
    from m1jax.convert.source import Checkpoint
    from m1jax.parallel import jax_setup

    jax_setup.prepare()
    console = consoles.make()
    if prompt is not None and not verify:
        raise UserError("--prompt says what --verify compares logits on: give both.")
    shard_bytes, target = _bytes(shard_size), Path(out)
    source = loading.stored(Path(model_folder))
    generation = _generation(source)
    described = source.config, source.rope_base, source.token_ids, generation
    state = artefact.state_of(tokenizer_files.of_folder(source.tokenizer)) if source.tokenizer else None
    of = artefact.key(source.key, described, state, verify, dtype, form, shard_bytes, prompt)
    if artefact.is_whole(target, "export", of):
        console.print(f"{target} is already complete.")
        return
    on_disk = merging.opened(source.parameters, source.config, source.lora)
    own = hf.tensor_dtypes(on_disk, source.config) | dict(source.dtypes)
    dtypes = dict.fromkeys(own, dtype) if dtype else own
    total = _size(source.config, dtypes)
    disk.check_room(target, total + (min(total, shard_bytes) if form == "torch" else 0))
    details: dict[str, Any] = {} if source.step is None else {"step": source.step}
    with ByteBar(console) as bar, artefact.building(target, "export", of, details) as folder:
        files = hf.export(
            on_disk,
            source.config,
            source.rope_base,
            source.tokenizer,
            folder,
            source.token_ids,
            generation=generation,
            dtypes=dtypes,
            form=form,
            shard_bytes=shard_bytes,
            advance=bar.line("exporting", total),
        )
        if verify:
            advance = bar.line("comparing", total)
            count = writing.compare(Checkpoint(folder), on_disk, source.config, into_files=True, advance=advance)
            tokenizer = loading.tokenizer_in(source.tokenizer, source.token_ids)
            rows = agreement.prompts(source.config, prompt, tokenizer, Path(model_folder))
            ours = loading.language_model(
                source.config, source.rope_base, source.parameters, "float32", dtype, lora=source.lora
            )
            found = agreement.compare_logits(folder, source.config, rows, ours)
            (folder / agreement.VERIFICATION).write_text(
                json.dumps({**found, "tensors": count}) + "\n", encoding="utf-8"
            )
            console.print(f"{count} tensors compared with their source: all are equal, bit by bit.")
            console.print(found["sentence"])
    what = "The imported model" if source.step is None else f"Step {source.step}"
    if source.lora is not None:
        what += ", its adapter merged,"
    console.print(f"{what} exported to {target}: config.json, {_shown(files)}, tokenizer and PyTorch model.")


def export_adapter(model_folder: str, out: str, base: str | None, dtype: str | None) -> None:
    """Writes the factors of a run with train.lora into `out` as PEFT has them, with the tokenizer and chat template.

    Does nothing if they are there. Raises UserError where the run has no factors or trained other parameters too, and
    where nothing says how PEFT finds the base model.
    """
    # They load JAX, which takes seconds: not for `m1 export --help`.
    from m1jax import loading
    from m1jax.convert import config_json, hf, peft_files, tokenizer_files
    from m1jax.convert.parameters import OnDisk
    from m1jax.parallel import jax_setup

    jax_setup.prepare()
    console, target = consoles.make(), Path(out)
    source = loading.stored(Path(model_folder))
    if source.run is None or source.lora is None:
        raise UserError(f"{model_folder} has no adapter (train.lora.rank is 0): export it without --adapter.")
    if source.run.train.trained:
        raise UserError(
            f"{model_folder} trained other parameters beside its adapter (train.trained = "
            f"{list(source.run.train.trained)}), which PEFT's file would lack: export it merged, without --adapter."
        )
    base = base or _base(source)
    generation, kind = _generation(source), dtype or "float32"
    state = artefact.state_of(tokenizer_files.of_folder(source.tokenizer)) if source.tokenizer else None
    of = artefact.key(source.key, base, kind, generation, state)
    if artefact.is_whole(target, "adapter", of):
        console.print(f"{target} is already complete.")
        return
    with artefact.building(target, "adapter", of, {"step": source.step}) as folder:
        count = peft_files.write(folder, OnDisk(source.parameters), source.config, source.lora, base, kind)
        ids = config_json.single(source.token_ids)
        tokenizer_files.write(source.tokenizer, folder, ids, source.config.max_positions)
        hf.write_json(folder / config_json.GENERATION, generation or dict(source.token_ids))
    console.print(f"The adapter of step {source.step} exported to {target}: {count} tensors, for the model {base}.")


def _base(source: "Stored") -> str:
    """What an adapter's file calls its base model by default."""
    from m1jax.convert import config_json

    assert source.run is not None
    initial = source.run.train.initial
    if initial and (Path(initial) / config_json.FILE).is_file():
        return initial
    what = f"train.initial = {initial} is no folder that it reads" if initial else "the run began from its seed"
    raise UserError(
        f"nothing says where PEFT finds the base model ({what}): write one with `m1 export` if there is none, and give "
        f"its folder or its name on the hub with --base."
    )


def _generation(source: "Stored") -> Any:
    """generation_config.json: an imported model's own, or of a run every token at which `m1 chat` stops.

    None where that is the end of text alone.
    """
    from m1jax import loading
    from m1jax.tokenizer import chat

    if source.run is None or source.generation is not None:
        return source.generation
    tokenizer = loading.tokenizer_in(source.tokenizer, source.token_ids)
    try:
        marks = [] if tokenizer is None else chat.of(tokenizer).ends
    except UserError:  # no chat format, or several: it is no assistant
        marks = []
    first = source.token_ids.get("eos_token_id")
    ends = [*dict.fromkeys([*(first if isinstance(first, list) else [first]), *marks])]
    return {**source.token_ids, "eos_token_id": ends} if len(ends) > 1 else None


def _size(config: ModelConfig, dtypes: dict[str, str]) -> int:
    from m1jax.convert import table, tensor_files

    return sum(tensor_files.nbytes(entry.shape, dtypes[entry.name]) for entry in table.entries(config))


def _shown(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files) - 1} files of weights"


def _bytes(size: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", size.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UserError(f"--shard-size {size!r} is not a size: write it as 5GB, 500MB or 2GiB.")
    return max(1, int(float(found[1]) * _UNITS[(found[2] or "").upper()]))
