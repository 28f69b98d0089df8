"""Baichuan-M1 from the facts alone: one layer after another, whole score matrices, any precision, no m1jax code."""

import jax
import jax.numpy as jnp


def logits(config, params, tokens, segments, base):
    weight = params["head"]["weight"]
    return hidden(config, params, tokens, segments, base) @ (weight / jnp.linalg.norm(weight, axis=1)[:, None]).T


def loss(config, params, tokens, segments, base, targets, weights):
    log_p = jax.nn.log_softmax(logits(config, params, tokens, segments, base))
    return -jnp.sum(jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0] * weights)


def hidden(config, params, tokens, segments, base):
    x = params["embed"]["weight"][tokens]
    for i in range(config.num_layers):
        layer, kind = params["prefix"][str(i)], config.pattern[i % len(config.pattern)]
        window = config.window if kind == "window" else tokens.shape[1]
        x = x + attend(layer["attention"], norm(x, layer["input_norm"], config), segments, window, base)
        mlp, y = layer["mlp"], norm(x, layer["post_attention_norm"], config)
        gate = y @ mlp["gate_proj"]
        x = x + (gate / (1 + jnp.exp(-gate)) * (y @ mlp["up_proj"])) @ mlp["down_proj"]
    return norm(x, params["norm"], config)


def norm(x, params, config):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * params["weight"]


def attend(params, x, segments, window, base):
    S = x.shape[1]
    q, k, v = (jnp.einsum("bse,ehd->bhsd", x, params[f"{name}_proj"]) for name in "qkv")
    same = segments[:, :, None] == segments[:, None, :]
    follows = jnp.pad(same[:, jnp.arange(1, S), jnp.arange(S - 1)], ((0, 0), (1, 0)))[:, None, :, None]
    k, v = (
        weight[:, 0, None, None] * jnp.roll(y, 1, axis=2) * follows + weight[:, 1, None, None] * y
        for y, weight in ((k, params["conv_k"]), (v, params["conv_v"]))
    )
    behind = jnp.arange(S)[:, None] - jnp.arange(S)
    position = jnp.sum(same & (behind > 0), axis=-1)
    q, k = turn(q, position, base), turn(k, position, base)
    k, v = (jnp.repeat(y, q.shape[1] // y.shape[1], axis=1) for y in (k, v))
    scores = jnp.einsum("bhsd,bhtd->bhst", q, k) / q.shape[-1] ** 0.5
    seen = (same & (behind >= 0) & (behind < window))[:, None]
    out = jnp.einsum("bhst,bhtd->bhsd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1), v)
    return jnp.einsum("bhsd,hde->bse", out, params["o_proj"])


def turn(x, position, base):
    D = x.shape[-1]
    angle = position[:, None, :, None] * base ** (-2.0 * jnp.arange(D // 2) / D)
    low, high = x[..., : D // 2], x[..., D // 2 :]
    return jnp.concatenate(
        [low * jnp.cos(angle) - high * jnp.sin(angle), high * jnp.cos(angle) + low * jnp.sin(angle)], axis=-1
    )
