"""Cases to compare on: a random model, packed rows and what each implementation makes of them."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
import torch
from flax import nnx
from hypothesis import strategies as st

from m1jax import model
from m1jax.config import ModelConfig
from tests.oracle import checkpoint, torch_m1

# More threads make tensors this small ten times slower.
torch.set_num_threads(1)
FEW = 16
PARAM_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Case:
    config: ModelConfig
    base: float
    seed: int
    segments: np.ndarray

    @functools.cached_property
    def params(self):
        """Everything away from its initial value: norms other than 1, convolutions that sum to no 1."""
        return parameters(self.config, self.seed)

    @functools.cached_property
    def rows(self):
        """Tokens, targets (int64) and weights (float32) that are 0 at padding."""
        rng = np.random.default_rng(self.seed)
        tokens, targets = rng.integers(0, self.config.vocab_size, (2, *self.segments.shape))
        return tokens, targets, (rng.random(tokens.shape) * (self.segments > 0)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Logits of real tokens, loss and gradients (checkpoint names, Q, K and V apart), float64."""

    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]


def parameters(config, seed):
    rng = np.random.default_rng(seed)
    dtype = PARAM_DTYPES[config.param_dtype]

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)
        std = 0.7 if "conv" in name else 1.0 if "embed" in name or "head" in name else config.hidden**-0.5
        return rng.normal(0, std, leaf.shape).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, model.abstract(config).shapes)


def ours(case):
    """What m1jax computes, in the config's dtypes."""
    tokens, targets, weights = case.rows
    graphdef = model.abstract(case.config).graphdef
    (loss, logits), gradient = _ours(graphdef, case.params, tokens, case.segments, targets, weights, case.base)
    return _outcome(case, logits, loss, checkpoint.tensors(case.config, jax.tree.map(np.asarray, gradient)))


# Machine code without LLVM's optimisation compiles in half the time; XLA's own passes all run.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _ours(graphdef, params, tokens, segments, targets, weights, base):
    def run(params):
        decoder = nnx.merge(graphdef, params)
        states = decoder.hidden(tokens, segments, rope_base=base)
        return decoder.cross_entropy(states, targets, weights, chunk=16).loss, decoder.logits(states)

    return jax.value_and_grad(run, has_aux=True)(params)


def theirs(case, dtype=torch.float64):
    """What the oracle computes in `dtype`, from the same (rounded) parameters at the param dtype, or in float64."""
    tokens, targets, weights = (torch.tensor(x) for x in case.rows)
    keep = torch.bfloat16 if case.config.param_dtype == "bfloat16" and dtype == torch.bfloat16 else torch_m1.wide(dtype)
    named = {
        name: torch.tensor(leaf.astype(np.float32)).to(keep).requires_grad_()
        for name, leaf in checkpoint.tensors(case.config, case.params).items()
    }
    settings = checkpoint.settings(case.config, case.base)
    loss, logits = torch_m1.loss(settings, named, tokens, torch.tensor(case.segments), targets, weights, dtype)
    loss.backward()
    gradients = {name: leaf.grad.to(torch.float64).numpy() for name, leaf in named.items()}
    return _outcome(case, logits.detach().numpy(), loss.item(), gradients)


def _outcome(case, logits, loss, gradients):
    settings = checkpoint.settings(case.config, case.base)
    gradients = {name: np.asarray(x, np.float64) for name, x in checkpoint.parts(settings, gradients).items()}
    return Outcome(np.asarray(logits, np.float64)[case.segments > 0], float(loss), gradients)


def relative(found, exact, floor=0.0):
    """Largest absolute difference over the largest absolute exact value (at least `floor`)."""
    return float(np.abs(found - exact).max() / max(np.abs(exact).max(), floor))


def scales(exact):
    """What each gradient's largest value is taken to be at least.

    A gradient that is 0 in exact arithmetic (Q and K where every token sees one key only) has no scale of its own: it
    gets a hundredth of the model's largest gradient. Any other stands for itself, however small.
    """
    largest = max(np.abs(x).max() for x in exact.gradients.values())
    return {name: 1e-2 * largest if np.abs(x).max() < 1e-12 * largest else 0.0 for name, x in exact.gradients.items()}


def differences(found, exact):
    """`relative` for logits, loss and each gradient."""
    floors = scales(exact)
    return {
        "logits": relative(found.logits, exact.logits),
        "loss": abs(found.loss - exact.loss) / abs(exact.loss),
        **{name: relative(found.gradients[name], x, floors[name]) for name, x in exact.gradients.items()},
    }


class Errors(NamedTuple):
    """Root mean square errors over the exact root mean square.

    Gradients are pooled over the layers, then averaged over the kinds of parameters. Kinds of few numbers are left out:
    in fewer bits the error of a single convolution, two numbers, is chance.
    """

    logits: float
    loss: float
    gradient: float


def errors(found, exact):
    """How far a computation in fewer bits lies from the exact one, on the whole."""

    def share(x, true, floor=0.0):
        return float(np.sqrt(np.mean((x - true) ** 2)) / max(np.sqrt(np.mean(true**2)), floor))

    floors = scales(exact)
    kinds = {}
    for name in exact.gradients:
        kinds.setdefault(re.sub(r"layers\.\d+", "layers", name), []).append(name)
    pooled = []
    for names in kinds.values():
        pair = [np.concatenate([side.gradients[name].ravel() for name in names]) for side in (found, exact)]
        if pair[0].size >= FEW:
            pooled.append(share(*pair, floor=max(floors[name] for name in names)))
    loss = abs(found.loss - exact.loss) / abs(exact.loss)
    return Errors(share(found.logits, exact.logits), loss, float(np.mean(pooled)))


@st.composite
def cases(draw, **fixed):
    """Any layer pattern, heads of both kinds with one KV head or more, windows below and above the row, odd lengths."""
    heads = st.sampled_from([(1, 1), (5, 1), (10, 1), (2, 2), (10, 2), (20, 2), (4, 4), (4, 2)])
    (num_heads, num_kv_heads), (window_num_heads, window_num_kv_heads) = draw(heads), draw(heads)
    pattern = tuple(draw(st.lists(st.sampled_from(["global", "window"]), min_size=1, max_size=4)))
    hidden = 2 * math.lcm(4, num_heads, window_num_heads) * draw(st.integers(1, 2))
    config = ModelConfig(
        vocab_size=draw(st.integers(256, 300)),
        hidden=hidden,
        ffn=draw(st.integers(8, 50)),
        num_layers=len(pattern) + draw(st.integers(0, 1)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        window_num_heads=window_num_heads,
        window_num_kv_heads=window_num_kv_heads,
        window=draw(st.integers(1, 8) | st.integers(9, 60)),
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        init_std=0.02,
        max_positions=256,
        pattern=pattern,
        normalize_head=draw(st.sampled_from([True, True, False])),
        tie_embeddings=draw(st.sampled_from([False, False, True])),
        **fixed,
    )
    segments = draw(packed_rows(draw(st.integers(1, 2)), draw(st.integers(2, 41))))
    return Case(config, draw(st.sampled_from([1e4, 1e5, 1e6])), draw(st.integers(0, 2**20)), segments)


@st.composite
def packed_rows(draw, B, S):
    """Segment ids (B, S) of documents side by side, with padding left, right or between; a real token in each row."""
    rows = []
    for _ in range(B):
        cuts = sorted(draw(st.sets(st.integers(1, S - 1), max_size=4)))
        padding = draw(
            st.lists(st.booleans(), min_size=len(cuts) + 1, max_size=len(cuts) + 1).filter(lambda x: not all(x))
        )
        ids = [0 if empty else number for number, empty in enumerate(padding, 1)]
        rows.append(np.repeat(ids, np.diff([0, *cuts, S])))
    return np.array(rows, np.int32)
