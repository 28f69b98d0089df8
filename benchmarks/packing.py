"""Packing beside its peers: speed alone and from text, and how full rows are at what price in cut documents.

    python benchmarks/packing.py --corpus runs/quickstart/corpus --tokenizer runs/quickstart/tokenizer --json out.json

The documents are a corpus's (`m1 corpus`), encoded once by a tokenizer (`m1 tokenizer train`); every packer gets the
same tokens in the same order. Ours writes whole rows to disk; grain's two packers give arrays in memory and write
nothing; the split-only packer (documents joined by EOS and cut every S tokens) is what most stacks do, here in numpy:
nothing can be fuller or faster to plan, and it cuts a document at nearly every row's end. Peers cannot split a document
that is longer than a row: it is split for them as for us, before the clock starts. Medians of `--repeats` runs.
"""

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grain
import numpy as np
import table
from numpy.typing import NDArray

from m1jax import tokenizer as tokenizers
from m1jax.rows.bestfit import pack_documents, packing_borders, pieces_of, split
from m1jax.rows.packing import pack
from m1jax.rows.shuffle import permutation
from m1jax.text.documents import document_files, read_documents
from m1jax.tokenizer import Tokenizer

Tokens = NDArray[np.integer]
WINDOW = 4096
BINS = 512


class _Kept:
    """A tokenizer that gives back what was encoded before: packing alone."""

    def __init__(self, tokenizer: Tokenizer, encoded: dict[str, Tokens]) -> None:
        self.eos_id, self.vocab_size, self.fingerprint = tokenizer.eos_id, tokenizer.vocab_size, tokenizer.fingerprint
        self._encoded = encoded

    def encode_arrays(self, texts: Sequence[str]) -> list[Tokens]:
        """The kept tokens of the texts."""
        return [self._encoded[text] for text in texts]


class _Pieces(grain.sources.RandomAccessDataSource):  # type: ignore[type-arg]
    """Pieces of documents in shuffled order, for grain."""

    def __init__(self, pieces: list[Tokens]) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> dict[str, Tokens]:
        return {"tokens": self._pieces[int(index)]}


def timed(run: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def ours(corpus: Path, tokenizer: object, row_length: int, workers: int) -> tuple[float, float, dict[str, float]]:
    """Fill, share of documents cut, and seconds of each phase, of `m1 pack`'s own function on the whole corpus."""
    seconds = {"encoded": 0.0, "packed": 0.0}
    last = time.perf_counter()

    def progress(source: str, phase: str, size: int) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[phase] += now - last
        last = now

    folder = Path(tempfile.mkdtemp())
    try:
        sources = {path.stem: (lambda path=path: read_documents(path)) for path in document_files(corpus)}
        manifest = pack(sources, tokenizer, folder, [row_length], WINDOW, 0, progress, workers=workers)
    finally:
        shutil.rmtree(folder)
    files = [source.files[row_length] for source in manifest.sources.values()]
    rows = sum(file.rows for file in files)
    documents = sum(source.documents for source in manifest.sources.values())
    return sum(file.fill * file.rows for file in files) / rows, sum(file.cut for file in files) / documents, seconds


def grain_packer(name: str, pieces: list[Tokens], row_length: int) -> tuple[float, float]:
    """Fill and seconds of one of grain's packers over the pieces."""
    packer = getattr(grain.experimental, name)
    read = grain.MapDataset.source(_Pieces(pieces)).to_iter_dataset(grain.ReadOptions(num_threads=0))
    start = time.perf_counter()
    rows = tokens = 0
    for row in packer(read, length_struct={"tokens": row_length}, num_packing_bins=BINS, shuffle_bins=False):
        rows += 1
        tokens += int((row["tokens_segment_ids"] > 0).sum())
    assert tokens == sum(map(len, pieces)), "a peer lost tokens"
    return tokens / rows / row_length, time.perf_counter() - start


def split_only(lengths: NDArray[np.int64], row_length: int) -> tuple[float, float]:
    """Fill and share of documents cut where documents are joined and cut every `row_length` tokens."""
    ends = np.cumsum(lengths)
    cut = (ends - lengths) // row_length != (ends - 1) // row_length
    return float(ends[-1] / (-(-ends[-1] // row_length) * row_length)), float(cut.mean())


def main() -> None:
    """Runs, prints, and writes --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--row-lengths", type=int, nargs="+", default=[512, 4096, 32768])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tokenizer = tokenizers.load(args.tokenizer)
    texts = [document.text for document in read_documents(args.corpus)]
    size = sum(len(text.encode()) for text in texts)
    start = time.perf_counter()
    encoded = dict(zip(texts, tokenizer.encode_arrays(texts), strict=True))
    print(f"one thread encodes {size / 1e6 / (time.perf_counter() - start):.1f} MB/s ({size / 1e6:.1f} MB of text)")
    order = permutation(len(texts), "benchmark")
    lengths = np.array([len(encoded[texts[i]]) + 1 for i in order])
    total = int(lengths.sum())
    rows: list[table.Row] = []
    for row_length in args.row_lengths:
        fill, cut, _ = ours(args.corpus, _Kept(tokenizer, encoded), row_length, args.workers)
        packing = [
            ours(args.corpus, _Kept(tokenizer, encoded), row_length, args.workers)[2] for _ in range(args.repeats)
        ]
        alone = statistics.median(seconds["packed"] for seconds in packing)
        pieces = [
            np.concatenate([encoded[texts[i]], [tokenizer.eos_id]]).astype(np.int32)[offset : offset + length]
            for i in order
            for offset, length in split(len(encoded[texts[i]]) + 1, row_length)
        ]
        what = f"rows of {row_length}"
        long = float((pieces_of(lengths, row_length) > 1).mean())
        for name in ("FirstFitPackIterDataset", "BestFitPackIterDataset"):
            if hasattr(grain.experimental, name):
                their_fill, their_seconds = grain_packer(name, pieces, row_length)
                peer = f"grain {name}, {BINS} bins"
                rows.append(table.row(f"fill/{what}", fill, their_fill, peer, "share of slots"))
                rows.append(
                    table.row(f"pack/{what}", total / 1e6 / alone, total / 1e6 / their_seconds, peer, "Mtoken/s")
                )
        joined_fill, joined_cut = split_only(lengths, row_length)
        rows.append(table.row(f"fill/{what}", fill, joined_fill, "joined and cut", "share of slots"))
        kept = f"documents in one piece/{what} ({long:.1%} are longer)"
        rows.append(table.row(kept, 1 - cut, 1 - joined_cut, "joined and cut", "share"))

        def plan(row_length: int = row_length) -> None:
            borders = packing_borders(lengths, [row_length], WINDOW)
            for a, b in itertools.pairwise(borders):
                pack_documents(np.arange(a, b), lengths[a:b], row_length)

        print(f"{what}: {len(lengths):,} documents planned in {timed(plan, args.repeats):.3f} s; written at "
              f"{size / 1e6 / alone:.0f} MB/s of text")  # fmt: skip
    whole = [
        sum(ours(args.corpus, tokenizer, args.row_lengths[0], args.workers)[2].values()) for _ in range(args.repeats)
    ]
    one = [sum(ours(args.corpus, tokenizer, args.row_lengths[0], 1)[2].values()) for _ in range(args.repeats)]
    speeds = [size / 1e6 / statistics.median(seconds) for seconds in (whole, one)]
    rows.append(table.row(f"text to rows/{args.workers} threads", *speeds, "one thread of ours", "MB/s of text"))
    print(table.machine(["numpy", "grain", "array_record", "tiktoken"]))
    table.show(rows)
    if args.json:
        table.write(rows, args.json)


if __name__ == "__main__":
    main()
