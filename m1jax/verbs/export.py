"""`m1 export`: a run's newest checkpoint, or an imported model, in the reference layout, and its proof."""

import json
import re
from pathlib import Path
from typing import Any

from m1jax import artefact, loading
from m1jax.config import ModelConfig
from m1jax.convert import hf, parameters, table, tensor_files, writing
from m1jax.convert.source import Checkpoint
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.verbs import jax_setup, transfer

VERIFICATION = "verification.json"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def run(
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
    occupied `out`, and whatever disagrees.
    """
    jax_setup.prepare()
    console = consoles.make()
    if prompt is not None and not verify:
        raise UserError("--prompt says what --verify compares logits on: give both.")
    shard_bytes, target = _bytes(shard_size), Path(out)
    source = loading.stored(Path(model_folder))
    of = artefact.key(source.key, verify, dtype, form, shard_bytes, prompt)
    if artefact.is_whole(target, "export", of):
        console.print(f"{target} is whole already.")
        return
    on_disk = parameters.OnDisk(source.parameters)
    own = hf.tensor_dtypes(on_disk, source.config) | dict(source.dtypes)
    dtypes = dict.fromkeys(own, dtype) if dtype else own
    total = _size(source.config, dtypes)
    transfer.check_room(target, total + (min(total, shard_bytes) if form == "torch" else 0))
    details: dict[str, Any] = {} if source.step is None else {"step": source.step}
    with transfer.bar(console) as line, artefact.building(target, "export", of, details) as folder:
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
            advance=line("exporting", total),
        )
        if verify:
            advance = line("comparing", total)
            count = writing.compare(Checkpoint(folder), on_disk, source.config, into_files=True, advance=advance)
            tokenizer = loading.tokenizer_in(source.tokenizer, source.token_ids)
            rows = transfer.prompts(source.config, prompt, tokenizer, Path(model_folder))
            ours = loading.language_model(source.config, source.rope_base, source.parameters, "float32", dtype)
            found = transfer.judge(folder, source.config, rows, ours)
            (folder / VERIFICATION).write_text(json.dumps({**found, "tensors": count}) + "\n", encoding="utf-8")
            console.print(f"{count} tensors compared with their source and found the same, bit by bit.")
            console.print(found["sentence"])
    what = "The imported model" if source.step is None else f"Step {source.step}"
    console.print(f"{what} exported to {target}: config.json, {_shown(files)}, tokenizer and PyTorch model.")


def _size(config: ModelConfig, dtypes: dict[str, str]) -> int:
    return sum(tensor_files.nbytes(entry.shape, dtypes[entry.name]) for entry in table.entries(config))


def _shown(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files) - 1} files of weights"


def _bytes(size: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", size.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UserError(f"--shard-size {size!r} is no size: write it as 5GB, 500MB or 2GiB.")
    return max(1, int(float(found[1]) * _UNITS[(found[2] or "").upper()]))
