"""Is our tokenizer trained and used as fast as its peers'? All parts trained, and encoding on one core.

    python benchmarks/tokenizer.py --corpus runs/quickstart/corpus --json tokenizer.json

The peers train and encode the same text: `tokenizers` (one BPE on all text; our merges in its own encoder),
sentencepiece (its BPE, identity, bytes for what is rare), tiktoken (our merges behind the word pattern of GPT-2).
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import sentencepiece
import table
import tiktoken

from m1jax.text.documents import read_documents
from m1jax.tokenizer import NUM_SPECIAL, TrainedTokenizer, extend, train
from m1jax.tokenizer.layout import as_bytes
from m1jax.tokenizer.parts import part_sizes

GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LANGUAGES = {"en": "English", "zh": "Chinese"}


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call."""
    start = clock()
    work()
    return clock() - start


def texts_of(corpus: Path, limit: int) -> dict[tuple[str, str], list[str]]:
    """Training texts by (language, domain), about `limit` bytes in all."""
    documents = list(read_documents(corpus / "documents"))
    stride = max(1, round(sum(len(document.text.encode()) for document in documents) / limit))
    texts: dict[tuple[str, str], list[str]] = {}
    for document in itertools.islice(documents, 0, None, stride):
        texts.setdefault((document.language, document.domain), []).append(document.text)
    return dict(sorted(texts.items()))


def train_parts(parts: Sequence[list[str]], size: int) -> TrainedTokenizer:
    """Our tokenizer, learnt from one part after the other."""
    first, *others = zip(parts, part_sizes([0] * len(parts), size), strict=True)
    trained = train(*first)
    for some, reached in others:
        trained = extend(trained, some, reached)
    return trained


def train_all(texts: dict[tuple[str, str], list[str]], size: int) -> tuple[TrainedTokenizer, str, list[table.Row]]:
    """Our tokenizer, the path of sentencepiece's model, and the rows about training."""
    by_domain: dict[str, list[str]] = {}
    for (_, domain), some in texts.items():
        by_domain.setdefault(domain, []).extend(some)
    parts = [by_domain[domain] for domain in sorted(by_domain)]
    everything = list(itertools.chain.from_iterable(parts))
    made: list[TrainedTokenizer] = []
    ours = seconds(lambda: made.append(train_parts(parts, size)))
    joint = seconds(lambda: train(everything, size))
    prefix = str(Path(tempfile.mkdtemp()) / "peer")
    pieces = seconds(
        lambda: sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in everything for line in text.split("\n")),
            model_prefix=prefix, model_type="bpe", vocab_size=size, byte_fallback=True, split_digits=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.9999,
            minloglevel=2,
        )
    )  # fmt: skip
    condition = f"train/{sum(len(text.encode()) for text in everything) / 1e6:.0f} MB, {size:,} ids"
    rows = [
        table.row(condition, ours, joint, "tokenizers, one BPE", "s", less_is_better=True),
        table.row(condition, ours, pieces, "sentencepiece, one BPE", "s", less_is_better=True),
    ]
    return made[0], f"{prefix}.model", rows


def speed(encode: Callable[[str], object], texts: Sequence[str], repeats: int) -> float:
    """MB/s of processor time, the median of several passes."""
    size = sum(len(text.encode()) for text in texts)
    times = [seconds(lambda: [encode(text) for text in texts], time.process_time) for _ in range(repeats)]
    return size / 1e6 / statistics.median(times)


def encode_all(
    ours: TrainedTokenizer, model: str, texts: dict[tuple[str, str], list[str]], limit: int, repeats: int
) -> list[table.Row]:
    """The rows about encoding."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=model)
    ranks = {as_bytes(token): i for i, token in enumerate(ours.token_texts[NUM_SPECIAL:])}
    plain = tiktoken.Encoding("plain", pat_str=GPT2_WORDS, mergeable_ranks=ranks, special_tokens={})
    peers: dict[str, Callable[[str], object]] = {
        "tokenizers": lambda text: ours.encode_by_tokenizers([text]),
        "sentencepiece": pieces.encode,
        "tiktoken, GPT-2's words": lambda text: plain.encode_to_numpy(text, disallowed_special=()),
    }
    rows = []
    for (language, domain), some in texts.items():
        sizes = itertools.accumulate(len(text.encode()) for text in some)
        chosen = [text for text, size in zip(some, sizes, strict=True) if size <= limit] or some[:1]
        mine = speed(lambda text: ours.encode_arrays([text]), chosen, repeats)
        condition = f"encode/{LANGUAGES.get(language, language)} {domain}"
        for name, encode in peers.items():
            rows.append(table.row(condition, mine, speed(encode, chosen, repeats), name, "MB/s a core"))
    return rows


def main() -> None:
    """Runs everything once; encoding several times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus that `m1 corpus` made")
    parser.add_argument("--bytes", type=int, default=100_000_000, help="training text, at most about this much")
    parser.add_argument("--encode-bytes", type=int, default=8_000_000, help="text of each kind to encode")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    texts = texts_of(args.corpus, args.bytes)
    ours, model, rows = train_all(texts, args.vocab_size)
    assert ours.encoder_name == "tiktoken"
    rows += encode_all(ours, model, texts, args.encode_bytes, args.repeats)
    print(table.machine(("tokenizers", "tiktoken", "sentencepiece")))
    table.show(rows)
    if args.json:
        table.write(rows, args.json)


if __name__ == "__main__":
    main()
