"""Baichuan-M1 in plain PyTorch, written from the facts alone: shares no code with m1jax and takes no short cut.

One document at a time, so that nothing here knows of packing; whole score matrices; no cache, no fused attention.
Parameters are a dict of tensors with the names of the published checkpoint, settings its config.json as a dict (and
`normalize_head`, absent for True). The dtype of the computing is an argument: norms, rotary positions, softmax, the
head's norm and the loss are float32 under bfloat16, as the facts say, and otherwise as wide as everything else.

Legend: S tokens of one document, H query heads, K KV heads, D head_dim, E hidden, V vocabulary.
"""

import torch


def documents(segments):
    """(row, first, end) of every run of equal segment ids in rows (B, S); runs of 0 are padding and left out."""
    for row, ids in enumerate(segments.tolist()):
        first = 0
        for t in range(1, len(ids) + 1):
            if t == len(ids) or ids[t] != ids[first]:
                if ids[first] != 0:
                    yield row, first, t
                first = t


def logits(settings, tensors, tokens, segments, dtype=torch.float64):
    """(B, S, V) of packed rows, 0 at padding, at least float32."""
    rows = torch.zeros(*tokens.shape, settings["vocab_size"], dtype=wide(dtype))
    for row, first, end in documents(segments):
        rows[row, first:end] = document_logits(settings, tensors, tokens[row, first:end], dtype)
    return rows


def loss(settings, tensors, tokens, segments, targets, weights, dtype=torch.float64):
    """Sum of weight x -log p(target), and the logits."""
    rows = logits(settings, tensors, tokens, segments, dtype)
    log_p = rows - torch.logsumexp(rows, dim=-1, keepdim=True)
    chosen = torch.gather(log_p, 2, targets[:, :, None])[:, :, 0]
    return -(chosen * weights.to(rows.dtype)).sum(), rows


def greedy(settings, tensors, prompt, count, dtype=torch.float32):
    """The likeliest `count` tokens after a prompt (a list), each found by computing the whole document again."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            last = document_logits(settings, tensors, torch.tensor(tokens), dtype)[-1]
            tokens.append(int(last.argmax()))
    return tokens[len(prompt) :]


def wide(dtype):
    return torch.float32 if dtype == torch.bfloat16 else dtype


def document_logits(settings, tensors, tokens_S, dtype):
    x_SE = tensors["model.embed_tokens.weight"][tokens_S].to(dtype)
    for layer in range(settings["num_hidden_layers"]):
        named = f"model.layers.{layer}."
        own = {name.removeprefix(named): value for name, value in tensors.items() if name.startswith(named)}
        x_SE = x_SE + attention(settings, own, norm(settings, x_SE, own["input_layernorm.weight"]), layer)
        x_SE = x_SE + mlp(own, norm(settings, x_SE, own["post_attention_layernorm.weight"]))
    x_SE = norm(settings, x_SE, tensors["model.norm.weight"])
    name = "model.embed_tokens.weight" if settings["tie_word_embeddings"] else "lm_head.weight"
    weight_VE = tensors[name].to(wide(dtype))
    if settings.get("normalize_head", True):
        weight_VE = weight_VE / torch.sqrt((weight_VE**2).sum(dim=1, keepdim=True))
    return (x_SE @ weight_VE.to(dtype).T).to(wide(dtype))


def norm(settings, x_SE, weight_E):
    x = x_SE.to(wide(x_SE.dtype))
    x = x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + settings["rms_norm_eps"])
    return (x.to(weight_E.dtype) * weight_E).to(x_SE.dtype)


def mlp(own, x_SE):
    gate, up, down = (own[f"mlp.{name}_proj.weight"].to(x_SE.dtype) for name in ("gate", "up", "down"))
    gated = x_SE @ gate.T
    return (gated * torch.sigmoid(gated) * (x_SE @ up.T)) @ down.T


def attention(settings, own, x_SE, layer):
    S, E = x_SE.shape
    windowed = layer in settings["sliding_window_layers"]
    prefix = "num_swa_" if windowed else "num_"
    H, K = settings[f"{prefix}attention_heads"], settings[f"{prefix}key_value_heads"]
    D = E // H
    packed = x_SE @ own["self_attn.W_pack.weight"].to(x_SE.dtype).T
    q = packed[:, : H * D].reshape(S, H, D)
    k = packed[:, H * D : (H + K) * D].reshape(S, K, D)
    v = packed[:, (H + K) * D :].reshape(S, K, D)
    k, v = convolved(k, own["self_attn.conv_k"]), convolved(v, own["self_attn.conv_v"])
    q, k = rotated(q, settings["rope_theta"]), rotated(k, settings["rope_theta"])
    t, s = torch.arange(S)[:, None], torch.arange(S)[None, :]
    seen = (s <= t) & (s > t - settings["sliding_window"]) if windowed else s <= t
    heads = []
    for h in range(H):
        group = h // (H // K)
        scores = (q[:, h] @ k[:, group].T).to(wide(x_SE.dtype)) / D**0.5
        weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        heads.append(weights.to(x_SE.dtype) @ v[:, group])
    return torch.cat(heads, dim=1) @ own["self_attn.o_proj.weight"].to(x_SE.dtype).T


def convolved(x_SKD, weight):
    """w[0] x_{t-1} + w[1] x_t per KV head; weight (1, 1, K, 1, 2)."""
    x = x_SKD.to(wide(x_SKD.dtype))
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    pair_K2 = weight[0, 0, :, 0].to(x.dtype)
    return (pair_K2[:, :1] * before + pair_K2[:, 1:] * x).to(x_SKD.dtype)


def rotated(x_SHD, base):
    """Half-split rotation of pairs (i, i + D/2) by position x base^(-2i/D)."""
    S, _, D = x_SHD.shape
    x = x_SHD.to(wide(x_SHD.dtype))
    frequencies = torch.tensor([base ** (-2 * i / D) for i in range(D // 2)], dtype=x.dtype)
    angles = torch.arange(S, dtype=x.dtype)[:, None, None] * frequencies
    first, second = x[..., : D // 2], x[..., D // 2 :]
    turned = [
        first * torch.cos(angles) - second * torch.sin(angles),
        second * torch.cos(angles) + first * torch.sin(angles),
    ]
    return torch.cat(turned, dim=-1).to(x_SHD.dtype)
