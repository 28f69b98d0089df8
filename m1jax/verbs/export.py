"""`m1 export`: a run's newest checkpoint, or an imported model, in the reference layout, and its proof."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from m1jax import artefact, disk
from m1jax.config import ModelConfig
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.show.progress import ByteBar
from m1jax.verbs.arguments import Parser, add_conversion, example

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 export --model runs/quickstart --out exported --verify")
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's folder or an imported model")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of config.json, weights, tokenizer")
    parser.add_argument("--format", choices=("hf", "torch"), default="hf", help="safetensors (default) or torch.save")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="most bytes of a file (default: 5GB)")
    add_conversion(parser, "compare every tensor, and with another program the logits")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
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
    from m1jax.convert import agreement, hf, parameters, tokenizer_files, writing
    from m1jax.convert.source import Checkpoint
    from m1jax.parallel import jax_setup

    jax_setup.prepare()
    console = consoles.make()
    if prompt is not None and not verify:
        raise UserError("--prompt says what --verify compares logits on: give both.")
    shard_bytes, target = _bytes(shard_size), Path(out)
    source = loading.stored(Path(model_folder))
    described = source.config, source.rope_base, source.token_ids, source.generation
    state = artefact.state_of(tokenizer_files.of_folder(source.tokenizer)) if source.tokenizer else None
    of = artefact.key(source.key, described, state, verify, dtype, form, shard_bytes, prompt)
    if artefact.is_whole(target, "export", of):
        console.print(f"{target} is already complete.")
        return
    on_disk = parameters.OnDisk(source.parameters)
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
            generation=source.generation,
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
            ours = loading.language_model(source.config, source.rope_base, source.parameters, "float32", dtype)
            found = agreement.compare_logits(folder, source.config, rows, ours)
            (folder / agreement.VERIFICATION).write_text(
                json.dumps({**found, "tensors": count}) + "\n", encoding="utf-8"
            )
            console.print(f"{count} tensors compared with their source: all are equal, bit by bit.")
            console.print(found["sentence"])
    what = "The imported model" if source.step is None else f"Step {source.step}"
    console.print(f"{what} exported to {target}: config.json, {_shown(files)}, tokenizer and PyTorch model.")


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
