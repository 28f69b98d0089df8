"""Loading beside its peers: tokens a second in one process, resuming, memory, and a bucket that answers after 100 ms.

    python benchmarks/loader.py --json out.json

All read the same documents (random tokens, lengths as of web text) in batches of 16 rows of 4,096. Ours and grain's
own pipeline give tokens, targets, weights, segment ids and positions; the windows of torch + memmap, as Megatron cuts
them, and of litdata are tokens alone (targets are a view), so that two further lines let torch derive the rest from EOS
as we would. Documents longer than a row are cut for grain, which cannot split
them. Peers that are not installed are left out and named. Medians of `--repeats` runs; files are warm.
"""

import argparse
import gc
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import table
from array_record.python.array_record_module import ArrayRecordWriter
from loader_peers import PEERS, grain_pipeline

from m1jax import artefact
from m1jax.config import LearningRateConfig, StageConfig
from m1jax.curriculum.curriculum import Curriculum
from m1jax.curriculum.loader import Loader
from m1jax.rows import packed
from m1jax.rows.bestfit import pack_documents, packing_borders
from m1jax.rows.manifest import Manifest, RowFile, SourceRows, row_path
from m1jax.rows.ranges import write_index
from m1jax.rows.record import Row
from m1jax.rows.store import RowWriter

LENGTH, BATCH, EOS, VOCAB = 4096, 16, 2, 60_000
SOURCES = ("a", "b", "c")


def documents(rng: np.random.Generator, tokens: int) -> list[np.ndarray]:
    """Documents of lognormal length, EOS last, up to some tokens in all."""
    found, size = [], 0
    while size < tokens:
        length = int(np.clip(rng.lognormal(6.2, 1.1), 8, 4 * LENGTH))
        found.append(np.append(rng.integers(100, VOCAB, length), EOS).astype(np.uint16))
        size += length + 1
    return found


def write_rows(folder: Path, texts: dict[str, list[np.ndarray]]) -> None:
    """Packs documents as `m1 pack` does."""
    sources = {}
    with artefact.building(folder, "rows", "benchmark") as partial:
        for name, docs in texts.items():
            path = row_path(partial, LENGTH, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            lengths, first = np.array([len(doc) for doc in docs]), [0]
            borders = packing_borders(lengths, [LENGTH], 4096)
            with RowWriter(path) as writer:
                for start, end in itertools.pairwise(borders):
                    pieces = pack_documents(np.arange(start, end), lengths[start:end], LENGTH)
                    for number in range(pieces.count):
                        mine = pieces.rows == number
                        columns = [part[mine].astype(np.uint32) for part in (pieces.lengths, pieces.documents)]
                        offsets = pieces.offsets[mine].astype(np.uint32)
                        cuts = zip(columns[1].tolist(), offsets.tolist(), columns[0].tolist(), strict=True)
                        tokens = np.concatenate([docs[doc][at : at + size] for doc, at, size in cuts])
                        writer.write(Row(LENGTH, tokens, *columns, offsets))
                    first.append(first[-1] + pieces.count)
            write_index(path)
            file = RowFile(first[-1], 1.0, tuple(first), artefact.checksum(path), path.stat().st_size)
            size = int(lengths.sum())
            targets = size - len(docs)
            sources[name] = SourceRows(
                "en", "general", len(docs), 0, size, targets, float(targets), 4 * size, {LENGTH: file}
            )
        Manifest("benchmark", VOCAB, 0, 4096, (LENGTH,), sources).save(partial)


def loader(address: str, rows: int) -> Loader:
    """A run of two stages over the three sources."""
    rate = LearningRateConfig(1e-3, 1e-3)
    mixtures = {"one": {"a": 0.6, "b": 0.3, "c": 0.1}, "two": {"a": 0.2, "b": 0.2, "c": 0.6}}
    stages = tuple(
        StageConfig(name, mixture, rate, rows * LENGTH // 2, LENGTH, BATCH, 1e5) for name, mixture in mixtures.items()
    )
    manifest = packed.load_manifest(address)
    curriculum = Curriculum(stages, manifest, 0)
    return Loader(curriculum, packed.open_stores(address, manifest, curriculum.used))


def speed(make: Callable[[], Iterator[Any]], batches: int) -> float:
    """Million tokens a second over some batches, the first two left out."""
    iterator = make()
    for _ in range(2):
        next(iterator)
    begun = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    taken = time.perf_counter() - begun
    if hasattr(iterator, "close"):
        iterator.close()
    return batches * BATCH * LENGTH / taken / 1e6


def resume_ours(rows: Path) -> tuple[float, float]:
    """Milliseconds to the first batch from a random step of a run of 20T tokens: median and worst of 30."""
    run = loader(str(rows), 20 * 10**12 // LENGTH)
    steps = 20 * 10**12 // LENGTH // BATCH
    times = []
    for step in np.random.default_rng(0).integers(0, steps - 10, 31).tolist():
        begun = time.perf_counter()
        iterator = run.batches(step, steps)
        next(iterator)
        times.append(1e3 * (time.perf_counter() - begun))
        iterator.close()
    return statistics.median(times[1:]), max(times[1:])


def resume_grain(path: Path, after: int) -> float:
    """Milliseconds to the next batch of grain's pipeline from the state that it had after some batches."""
    dataset = grain_pipeline(path, LENGTH, BATCH, prefetch=False)
    iterator = iter(dataset)
    for _ in range(after):
        next(iterator)
    state = iterator.get_state()
    times = []
    for _ in range(5):
        again = iter(dataset)
        begun = time.perf_counter()
        again.set_state(state)
        next(again)
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def memory(rows: Path, total: int) -> tuple[float, float]:
    """Resident MB after a tenth of some rows, and after all of them."""
    batches = loader(str(rows), 2 * total).batches(0, total // BATCH)
    process, found = psutil.Process(), []
    for step, _ in enumerate(batches, 1):
        if step in (total // BATCH // 10, total // BATCH):
            gc.collect()
            found.append(process.memory_info().rss / 1e6)
    return found[0], found[1]


def paced(address: str, steps: int, seconds: float) -> float:
    """Million tokens a second that reach a consumer who computes some seconds on every batch."""
    run = loader(address, 10**6)
    batches = run.batches(0, steps + 20)
    for _ in range(20):
        next(batches)
        time.sleep(seconds)
    begun = time.perf_counter()
    for _ in range(steps):
        next(batches)
        time.sleep(seconds)
    taken = time.perf_counter() - begun
    batches.close()
    return steps * BATCH * LENGTH / taken / 1e6


SERVE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.rows import stand_in
with stand_in.serving(Path(sys.argv[2])) as server:
    print(server.url, flush=True)
    time.sleep(3600)
"""


def bucket(rows: Path, steps: int, seconds: float) -> tuple[float, float]:
    """`paced` from a bucket with 100 ms of latency and from the disk; the bucket is tests/rows/stand_in.py."""
    here = Path(__file__).parents[1]
    command = [sys.executable, "-c", SERVE, str(here), str(rows.parent)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = server.stdout.readline().strip()
        os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "stand-in"
        return paced(f"gs://slow/{rows.name}", steps, seconds), paced(str(rows), steps, seconds)
    finally:
        server.kill()


def main() -> None:
    """Prints the table, and writes it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_000, help="rows of the data (default: 65.5M tokens)")
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rng = np.random.default_rng(0)
        texts = {name: documents(rng, args.rows * LENGTH // len(SOURCES)) for name in SOURCES}
        write_rows(root / "rows", texts)
        stream = np.concatenate([doc for docs in texts.values() for doc in docs])
        stream.tofile(root / "stream.bin")
        writer = ArrayRecordWriter(str(root / "documents.array_record"), "group_size:1,uncompressed")
        for docs in texts.values():
            for doc in docs:
                writer.write(doc[:LENGTH].tobytes())
        writer.close()
        del texts, stream, docs
        found = results(root, args)
    packages = ("grain", "array-record", "torch", "litdata")
    print(table.machine(name for name in packages if importlib.util.find_spec(name.replace("-", "_"))), "\n")
    table.show(found)
    if args.json:
        table.write(found, args.json)


def results(root: Path, args: argparse.Namespace) -> list[table.Row]:
    """Every line of the table."""
    batches = max(20, args.rows // BATCH // 2)

    def median(make: Callable[[], Iterator[Any]]) -> float:
        return statistics.median(speed(make, batches) for _ in range(args.repeats))

    run = loader(str(root / "rows"), 10**6)
    ours = median(lambda: run.batches(0, 60_000))
    found = []
    for name, (package, make) in PEERS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: left out.")
            continue
        prepared = make(root, LENGTH, BATCH)
        found.append(table.row("throughput/rows of 4,096", ours, median(prepared), name, "Mtoken/s"))
    middle, worst = resume_ours(root / "rows")
    after = batches // 2
    peer = resume_grain(root / "documents.array_record", after)
    name = f"grain FirstFit, set_state after {after} batches"
    found.append(
        table.row("resume/median of random steps of 20T tokens", middle, peer, name, "ms", less_is_better=True)
    )
    found.append(table.row("resume/worst of 30", worst, peer, name, "ms", less_is_better=True))
    early, late = memory(root / "rows", args.memory_rows)
    name = f"ours after {args.memory_rows // 10:,} rows"
    found.append(
        table.row(f"memory/after {args.memory_rows:,} rows", late, early, name, "MB resident", less_is_better=True)
    )
    slow, disk = bucket(root / "rows", 60, 0.1)
    found.append(table.row("bucket/100 ms of latency, 100 ms a step", slow, disk, "ours from disk", "Mtoken/s"))
    return found


if __name__ == "__main__":
    main()
