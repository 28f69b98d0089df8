"""The pipelines beside which benchmarks/loader.py puts ours: each makes an endless iterator over batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

EOS = 2
Make = Callable[[], Iterator[Any]]


def grain_pipeline(path: Path, length: int, batch: int, prefetch: bool = True) -> Any:
    """Grain's own: documents from ArrayRecord, shuffled, packed by FirstFit, targets and weights derived after it."""

    def decode(record: bytes) -> dict[str, np.ndarray]:
        return {"tokens": np.frombuffer(record, np.uint16).astype(np.int32)}

    def finish(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens, ids = packed["tokens"], packed["tokens_segment_ids"]
        follows = np.zeros(ids.shape, bool)
        follows[:, :-1] = (ids[:, 1:] == ids[:, :-1]) & (ids[:, :-1] > 0)
        targets = np.zeros_like(tokens)
        targets[:, :-1] = tokens[:, 1:] * follows[:, :-1]
        return {
            "tokens": tokens,
            "targets": targets,
            "weights": follows.astype(np.float32),
            "segment_ids": ids,
            "positions": packed["tokens_positions"],
        }

    source = grain.sources.ArrayRecordDataSource(str(path))
    documents = grain.MapDataset.source(source).seed(0).shuffle().repeat().map(decode)
    flow = documents.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    packed = grain.experimental.FirstFitPackIterDataset(
        flow, length_struct={"tokens": length}, num_packing_bins=batch * 4
    )
    batches = packed.batch(batch).map(finish)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2) if prefetch else batches


def _grain(root: Path, length: int, batch: int) -> Make:
    return lambda: iter(grain_pipeline(root / "documents.array_record", length, batch))


class _Windows:
    """Random windows of one stream of tokens, as Megatron's GPTDataset cuts them; a torch map-style data set."""

    def __init__(self, path: Path, length: int, derive: bool) -> None:
        self._stream, self._length, self._derive = np.memmap(path, np.uint16, "r"), length, derive
        self._order = np.random.default_rng(0).permutation((len(self._stream) - 1) // length)

    def __len__(self) -> int:
        return len(self._order) * 100

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = int(self._order[index % len(self._order)]) * self._length
        window = self._stream[start : start + self._length + 1].astype(np.int32)
        if not self._derive:
            return {"tokens": window}
        tokens, targets = window[:-1], window[1:]
        ends = tokens == EOS
        segment_ids = np.cumsum(ends, dtype=np.int32) - ends + 1
        starts = np.flatnonzero(ends) + 1
        begins = np.zeros(self._length + 1, np.int32)
        begins[starts] = starts
        positions = np.arange(self._length, dtype=np.int32) - np.maximum.accumulate(begins[:-1])
        weights = 1 - ends.astype(np.float32)
        return {
            "tokens": tokens,
            "targets": targets,
            "weights": weights,
            "segment_ids": segment_ids,
            "positions": positions,
        }


def _torch(derive: bool, workers: int) -> Callable[[Path, int, int], Make]:
    def prepare(root: Path, length: int, batch: int) -> Make:
        from torch.utils.data import DataLoader

        windows = _Windows(root / "stream.bin", length, derive)
        return lambda: iter(DataLoader(windows, batch_size=batch, num_workers=workers))  # type: ignore[arg-type]

    return prepare


def _litdata(root: Path, length: int, batch: int) -> Make:
    import litdata

    folder = root / "litdata"
    if not folder.exists():
        stream = np.memmap(root / "stream.bin", np.uint16, "r")
        part = 1 << 20
        litdata.optimize(
            fn=_Part(root / "stream.bin", part),
            inputs=list(range(len(stream) // part)),
            output_dir=str(folder),
            chunk_size=length * 2049,
            item_loader=litdata.TokensLoader(),
            num_workers=1,
        )
    tokens = litdata.TokensLoader(block_size=length)

    def make() -> Iterator[Any]:
        dataset = litdata.StreamingDataset(str(folder), item_loader=tokens, shuffle=True, drop_last=True)
        return iter(litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=0))

    return make


class _Part:
    """A part of the stream, for litdata's workers."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size

    def __call__(self, index: int) -> Iterator[Any]:
        import torch

        stream = np.memmap(self._path, np.uint16, "r")
        yield torch.from_numpy(stream[index * self._size : (index + 1) * self._size].astype(np.int32))


PEERS: dict[str, tuple[str, Callable[[Path, int, int], Make]]] = {
    "grain FirstFit": ("grain", _grain),
    "torch + memmap, tokens alone": ("torch", _torch(derive=False, workers=0)),
    "torch + memmap, the rest derived": ("torch", _torch(derive=True, workers=0)),
    "torch + memmap, the rest derived, 2 workers": ("torch", _torch(derive=True, workers=2)),
    "litdata, tokens alone": ("litdata", _litdata),
}
"""Package and maker of each."""
