"""Attention as a loop over tokens in float64, written from the facts alone: shares no code with m1jax."""

import numpy as np


def attention(q, k, v, layer, rows):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    conv_k, conv_v, inv_freq = (np.asarray(x) for x in (layer.conv_k, layer.conv_v, layer.inv_freq))
    positions, segments, window, scale = (
        np.asarray(rows.positions),
        np.asarray(rows.segment_ids),
        layer.window,
        layer.scale,
    )
    B, S, H, _ = q.shape
    group = H // k.shape[2]
    out, lse = np.zeros(q.shape), np.full((B, S, H), np.nan)
    keys, values = shifted(k, conv_k, segments), shifted(v, conv_v, segments)
    for b in range(B):
        for t in range(S):
            if segments[b, t] == 0:
                continue
            seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t] and (window is None or t - s < window)]
            for h in range(H):
                query = turned(q[b, t, h], positions[b, t], inv_freq)
                scores = np.array([query @ turned(keys[b, s, h // group], positions[b, s], inv_freq) for s in seen])
                weights = np.exp(scale * scores - (scale * scores).max())
                out[b, t, h] = (weights[:, None] * np.array([values[b, s, h // group] for s in seen])).sum(
                    0
                ) / weights.sum()
                lse[b, t, h] = np.log(np.exp(scale * scores).sum())
    return out, lse


def shifted(x, weight, segments):
    out = np.zeros(x.shape)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for h in range(x.shape[2]):
                out[b, t, h] = weight[h, 1] * x[b, t, h]
                if t > 0 and segments[b, t] == segments[b, t - 1]:
                    out[b, t, h] += weight[h, 0] * x[b, t - 1, h]
    return out


def turned(x, position, inv_freq):
    half = len(x) // 2
    turn = (x[:half] + 1j * x[half:]) * np.exp(1j * position * np.asarray(inv_freq, np.float64))
    return np.concatenate([turn.real, turn.imag])
