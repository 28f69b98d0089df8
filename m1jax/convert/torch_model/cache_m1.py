"""The state of generation of a Baichuan-M1 model, and where its tokens stand: positions, documents, padding.

Legend: B batch, S new tokens, T columns (cached and new), K key and value heads, D head_dim.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

from .configuration_m1 import BaichuanM1Config

_PADDING = -1


class Tokens(NamedTuple):
    """Where tokens stand, column by column."""

    positions: Tensor
    """(B, S): number of the token in its document."""
    documents: Tensor
    """(B, S): number of its document in the row; -1 for padding."""


class Neighbours(NamedTuple):
    """Which token comes before each, as an index into [last cached token, new tokens]."""

    before: Tensor
    """(B, S)."""
    first: Tensor
    """(B, S): whether a token is the first of its document, so that nothing comes before it."""
    last: Tensor
    """(B, 1): the last real token."""


class BaichuanM1CacheLayer(DynamicLayer):
    """What one layer remembers.

    `keys`, `values` (B, K, T, D): past tokens after convolution, keys after the rotary positions too; all of them in a
    global layer, those that the window can still reach in a window layer. `last_key`, `last_value` (B, K, 1, D): the
    last real token before both, for the convolution of the next; None before the first token.
    """

    is_croppable = False

    def __init__(self, is_sliding: bool):
        super().__init__()
        self.is_sliding = is_sliding
        self.last_key: Tensor | None = None
        self.last_value: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor, last_key: Tensor, last_value: Tensor, keep: int) -> tuple:
        """(keys, values) that the new tokens may see; of a window layer, `keep` columns stay."""
        if self.keys is not None:
            keys, values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        drop = keys.shape[2] - keep
        if self.is_sliding and drop > 0:
            self.keys, self.values = keys[:, :, drop:], values[:, :, drop:]
            if drop > keep:  # after a long prompt: a view would keep all of it in memory
                self.keys, self.values = self.keys.clone(), self.values.clone()
        self.last_key, self.last_value = last_key, last_value
        self.is_initialized = True
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Makes row i of the batch what row rows[i] was."""
        for name in ("keys", "values", "last_key", "last_value"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))

    def clear(self) -> None:
        """Forgets everything."""
        self.keys = self.values = self.last_key = self.last_value = None
        self.is_initialized = False


class BaichuanM1Cache(Cache):
    """The whole state of generation: it can be copied (`copy.deepcopy`), reordered, and given several new tokens."""

    def __init__(self, config: BaichuanM1Config):
        """An empty cache; the first forward sets batch, dtype and device."""
        super().__init__(layers=[BaichuanM1CacheLayer(config.is_window(i)) for i in range(config.num_hidden_layers)])
        self.window = config.sliding_window
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.tokens: Tokens | None = None  # all columns seen so far
        self.plain = True  # one document a row and no padding
        self.held = 0  # the last columns, which window layers hold
        for layer in self.layers:
            layer.clear()

    def append(self, tokens: Tokens, plain: bool) -> None:
        """Notes the new columns; the layers' tensors follow when each is run."""
        self.plain = self.plain and plain
        if self.tokens is not None:
            pairs = zip(self.tokens, tokens, strict=True)
            tokens = Tokens(*(torch.cat([old, new.to(old.device)], dim=1) for old, new in pairs))
        self.tokens = tokens

    def reachable(self) -> int:
        """How many of the last columns a window layer must keep for the tokens that come next."""
        if self.plain:
            return min(self.window - 1, self.get_seq_length())
        # Padding between turns makes the window span more columns in one row than in another.
        following = next_position(self.tokens)
        inside = self.tokens.documents == self.tokens.documents.amax(dim=1, keepdim=True)
        inside = (inside & (self.tokens.positions > following - self.window)).any(dim=0)
        return int((inside.cumsum(0) > 0).sum())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen so far, padding included."""
        return 0 if self.tokens is None else self.tokens.positions.shape[1]

    def select(self, rows: Tensor) -> None:
        """Makes row i of the batch what row rows[i] was."""
        if self.tokens is not None:
            self.tokens = Tokens(*(x.index_select(0, rows.to(x.device)) for x in self.tokens))
            for layer in self.layers:
                layer.select(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: row i goes on from row beam_idx[i]."""
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows."""
        self.select(torch.arange(self._rows())[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        self.select(torch.arange(self._rows()).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forgets everything."""
        self.clear()

    def crop(self, *args: Any) -> None:
        """Raises ValueError: a window layer has already dropped what would be needed."""
        raise ValueError("a Baichuan-M1 cache cannot be shortened: keep a copy.deepcopy of it to go back to.")

    def _rows(self) -> int:
        return 0 if self.tokens is None else self.tokens.positions.shape[0]


def next_position(tokens: Tokens) -> Tensor:
    """(B, 1): the position after each row's last real token, 0 where there is none."""
    current = tokens.documents.amax(dim=1, keepdim=True)
    inside = (tokens.documents == current) & (current > _PADDING)
    return torch.where(inside, tokens.positions + 1, 0).amax(dim=1, keepdim=True)


def place(
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past: Tokens | None,
) -> tuple[Tokens, bool]:
    """Where new tokens (B, S) stand after `past`, and whether they are plain: no padding, no second document."""
    B, S = shape
    columns = 0 if past is None else past.positions.shape[1]
    real_BS = torch.ones(shape, dtype=torch.bool, device=device)
    if attention_mask is not None:
        if attention_mask.shape != (B, columns + S):
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}: {(B, columns + S)} is needed, a column "
                f"for each cached and each new token."
            )
        real_BS = attention_mask[:, columns:].to(device).bool()
    start_B1 = torch.zeros(B, 1, dtype=torch.long, device=device) if past is None else next_position(past)
    counted_BS = start_B1 + real_BS.cumsum(dim=1) - 1
    positions_BS = counted_BS if position_ids is None else position_ids.to(device).expand(B, S)
    started = -1 if past is None else past.documents.amax(dim=1, keepdim=True)
    starts_BS = real_BS & (positions_BS == 0)
    # A row that is given only positions above 0 has one document all the same.
    documents_BS = torch.clamp(started + starts_BS.cumsum(dim=1), min=0)
    tokens = Tokens(positions_BS, torch.where(real_BS, documents_BS, _PADDING))
    if attention_mask is None and position_ids is None:
        return tokens, True
    expected_S = torch.arange(columns, columns + S, device=device)
    return tokens, bool((real_BS & (positions_BS == expected_S)).all())


def neighbours(tokens: Tokens) -> Neighbours:
    """The real token before each new one; index 0 is the last one in the cache."""
    real_BS = tokens.documents > _PADDING
    column_S = torch.arange(1, real_BS.shape[1] + 1, device=real_BS.device)
    latest_BS = torch.where(real_BS, column_S, 0).cummax(dim=1).values
    before_BS = pad(latest_BS[:, :-1], (1, 0))
    return Neighbours(before_BS, real_BS & (tokens.positions == 0), latest_BS[:, -1:])


def visible(keys: Tokens, new: int, window: int | None) -> Tensor:
    """(B, 1, S, T): whether each of the `new` last columns sees a column; padding sees padding, to stay finite."""
    positions_BT, documents_BT = keys
    T = positions_BT.shape[1]
    column_T = torch.arange(T, device=positions_BT.device)
    seen = (column_T <= column_T[T - new :, None]) & (documents_BT[:, T - new :, None] == documents_BT[:, None])
    if window is not None:
        seen = seen & (positions_BT[:, T - new :, None] - positions_BT[:, None] < window)
    return seen[:, None]
