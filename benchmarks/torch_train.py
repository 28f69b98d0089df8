"""The peer of train_step.py: a Baichuan-M1 and its training step, written plainly in PyTorch.

Rows hold one document each, so that PyTorch's fused attention needs no mask on global layers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Rows (B, S, K, D): weight[:, 0] times the token before plus weight[:, 1] times the token."""
    before = functional.pad(x[:, :-1], (0, 0, 0, 0, 1, 0))
    return before * weight[:, :1].to(x.dtype) + x * weight[:, 1:].to(x.dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


class Block(nn.Module):
    """One layer."""

    def __init__(self, settings: Mapping[str, Any], kind: str) -> None:
        super().__init__()
        prefix = "window_" if kind == "window" else ""
        self.heads, self.kv_heads = settings[f"{prefix}num_heads"], settings[f"{prefix}num_kv_heads"]
        hidden, ffn = settings["hidden"], settings["ffn"]
        self.head_dim = hidden // self.heads
        self.window = settings["window"] if kind == "window" else None
        self.input_norm = nn.RMSNorm(hidden, eps=settings["norm_eps"])
        self.post_attention_norm = nn.RMSNorm(hidden, eps=settings["norm_eps"])
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.conv_k = nn.Parameter(torch.empty(self.kv_heads, 2))
        self.conv_v = nn.Parameter(torch.empty(self.kv_heads, 2))
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor, rope: Mapping[int, tuple[Tensor, Tensor]], masks: Mapping[int, Tensor]) -> Tensor:
        """Hidden states (B, S, E); `rope` by head_dim, `masks` by window."""
        rows, length, _ = x.shape
        cos, sin = rope[self.head_dim]
        normed = self.input_norm(x)
        q = rotated(self.q_proj(normed).view(rows, length, self.heads, self.head_dim), cos, sin)
        k = convolved(self.k_proj(normed).view(rows, length, self.kv_heads, self.head_dim), self.conv_k)
        v = convolved(self.v_proj(normed).view(rows, length, self.kv_heads, self.head_dim), self.conv_v)
        k = rotated(k, cos, sin)
        group = self.heads // self.kv_heads
        q, k, v = q.transpose(1, 2), *(t.transpose(1, 2).repeat_interleave(group, dim=1) for t in (k, v))
        mask = masks.get(self.window or length)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        normed = self.post_attention_norm(x)
        return x + self.down_proj(functional.silu(self.gate_proj(normed)) * self.up_proj(normed))


class Model(nn.Module):
    """Embedding, layers, norm and normalised head."""

    def __init__(self, settings: Mapping[str, Any], base: float, length: int) -> None:
        super().__init__()
        kinds = [("global", "window")[i % 2] for i in range(settings["num_layers"])]
        self.embed = nn.Embedding(settings["vocab_size"], settings["hidden"])
        self.layers = nn.ModuleList([Block(settings, kind) for kind in kinds])
        self.norm = nn.RMSNorm(settings["hidden"], eps=settings["norm_eps"])
        self.head = nn.Parameter(torch.empty(settings["vocab_size"], settings["hidden"]))
        self.rope = {layer.head_dim: frequencies(layer.head_dim, base, length) for layer in self.layers}
        # A mask only where a window is shorter than the row: elsewhere it is plainly causal.
        index = torch.arange(length)
        behind = index[:, None] - index[None, :]
        self.masks = {w: (behind >= 0) & (behind < w) for w in [settings["window"]] if w < length}

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of all targets."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.rope, self.masks)
        logits = functional.linear(self.norm(x), functional.normalize(self.head, dim=1))
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def frequencies(head_dim: int, base: float, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, (S, 1, D / 2)."""
    angle = torch.arange(length)[:, None] * base ** (-torch.arange(0, head_dim, 2) / head_dim)
    return angle.cos()[:, None], angle.sin()[:, None]


def open_step(
    settings: Mapping[str, Any],
    parameters: Mapping[str, np.ndarray],
    tokens: np.ndarray,
    *,
    base: float,
    dtype: str,
    compiled: bool,
    rate: float,
) -> Callable[[], float]:
    """A step on tokens (rows, S + 1) from given parameters (by our names): call it for the loss before the update."""
    model = Model(settings, base, tokens.shape[1] - 1)
    load(model, parameters)
    decayed = [p for name, p in model.named_parameters() if "norm" not in name and "conv" not in name]
    others = [p for name, p in model.named_parameters() if "norm" in name or "conv" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8, fused=True)
    rows = torch.from_numpy(tokens.astype(np.int64))
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def load(model: Model, parameters: Mapping[str, np.ndarray]) -> None:
    """Our parameters of unrolled layers, by path, into the model: matrices are stored transposed."""
    with torch.no_grad():
        for name, target in model.named_parameters():
            path = name.replace("layers.", "prefix.").replace(".", "/")
            for part in ("q_proj", "k_proj", "v_proj", "o_proj", "conv_k", "conv_v"):
                path = path.replace(part, f"attention/{part}")
            for part in ("gate_proj", "up_proj", "down_proj"):
                path = path.replace(part, f"mlp/{part}")
            value = parameters.get(path, parameters.get(path.removesuffix("/weight")))
            if value is None:
                value = parameters[f"{path}/weight"]
            if "proj" in name:
                kept = target.shape[1]
                value = value.reshape(kept, -1).T
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(target.shape))
