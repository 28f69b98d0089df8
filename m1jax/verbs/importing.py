"""`m1 import`: a Hugging Face checkpoint as Orbax parameters that generate, export and train read."""

import argparse
from pathlib import Path

from m1jax import artefact, disk
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.show.progress import ByteBar
from m1jax.verbs.arguments import Parser, add_conversion, example


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 import --from downloaded --out models/m1 --verify")
    parser.add_argument("--from", dest="source", required=True, metavar="DIR", help="config.json and weights")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA in PEFT's files, merged into the model")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for generate, export and train.initial")
    add_conversion(parser, "read every tensor back and compare it; with --prompt also logits")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    import_checkpoint(args.source, args.out, args.dtype, args.verify, args.prompt, args.adapter)


def import_checkpoint(
    source: str, out: str, dtype: str | None, verify: bool, prompt: str | None, adapter: str | None = None
) -> None:
    """Writes Orbax parameters, model.json and the tokenizer's files into `out`; does nothing if they are there.

    Names, shapes and dtypes are checked before anything is written, numbers as they pass. With `verify` every tensor is
    read back and compared bit by bit; with `prompt` the logits too, by another program. Raises UserError for a damaged
    checkpoint, a tokenizer larger than the model, an `out` that holds something else, and a comparison that fails.
    """
    # They load JAX, which takes seconds: not for `m1 import --help`.
    from m1jax import loading
    from m1jax.convert import agreement, model_folder, parameters, reading, tokenizer_files, writing
    from m1jax.parallel import jax_setup

    jax_setup.prepare()
    console = consoles.make()
    if prompt is not None and not verify:
        raise UserError("--prompt says what --verify compares logits on: give both.")
    if prompt is not None and adapter is not None:
        raise UserError("--prompt compares with the model in --from alone: leave out --prompt or --adapter.")
    target, lora = Path(out), None if adapter is None else Path(adapter)
    checkpoint, config, rope_base = reading.open_checkpoint(Path(source), dtype, lora)
    # Every file of the folder: the next version of transformers may read any of them.
    files = {path for path in checkpoint.folder.iterdir() if path.is_file()} | {*checkpoint.files}
    state = artefact.state_of(files | {*tokenizer_files.of_folder(checkpoint.folder)})
    of = artefact.key(state, dtype, verify, prompt)
    if artefact.is_whole(target, model_folder.KIND, of):
        console.print(f"{target} is already complete.")
        return
    tokenizer_files.check_fits(checkpoint.folder, config.vocab_size)
    disk.check_room(target, model_folder.nbytes(checkpoint, config, dtype))
    with ByteBar(console) as bar, artefact.building(target, model_folder.KIND, of) as folder:
        advance = bar.line("importing", checkpoint.nbytes)
        record, sentences = model_folder.build(checkpoint, config, rope_base, folder, dtype, advance)
        if verify:
            on_disk = parameters.OnDisk(folder / model_folder.PARAMETERS)
            advance = bar.line("comparing", checkpoint.nbytes)
            count = writing.compare(checkpoint, on_disk, config, into_files=False, advance=advance)
            console.print(f"{count} tensors read back: all are equal to the checkpoint, bit by bit.")
        if prompt is not None:
            tokenizer = loading.tokenizer_in(folder / model_folder.TOKENIZER, record.token_ids)
            rows = agreement.prompts(config, prompt, tokenizer, checkpoint.folder)
            ours = loading.language_model(record.config, rope_base, folder / model_folder.PARAMETERS, "float32", dtype)
            console.print(agreement.compare_logits(checkpoint.folder, config, rows, ours)["sentence"])
    for sentence in [*reading.said(checkpoint), *sentences]:
        console.print(sentence)
    console.print(f"{config.num_parameters:,} parameters imported to {target}.")
