"""The schema of a run: frozen dataclasses, checked whole before anything compiles (config/file.py reads them).

Fields that the Baichuan-M1 report leaves undisclosed have no default: a config file states them.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m1jax.config.domains import VocabPartConfig as VocabPartConfig
from m1jax.config.folders import RunFolders
from m1jax.config.long_context import LongContextConfig as LongContextConfig
from m1jax.config.policy import PolicyConfig as PolicyConfig
from m1jax.config.policy import RewardConfig as RewardConfig
from m1jax.config.preference import PreferenceConfig as PreferenceConfig
from m1jax.config.stages import LearningRateConfig as LearningRateConfig
from m1jax.config.stages import RampConfig as RampConfig
from m1jax.config.stages import StageConfig as StageConfig
from m1jax.config.stages import bounded as _bounded
from m1jax.config.synthesis import SynthesisConfig as SynthesisConfig
from m1jax.config.timeline import Timeline
from m1jax.config.tuning import LoraConfig as LoraConfig
from m1jax.errors import UserError

DTYPES = ("float32", "bfloat16")
LAYER_KINDS = ("global", "window")
TRACKERS = ("wandb",)
OPTIMIZERS = ("adamw", "muon")
CLIP_POLICIES = ("skip_spikes", "skip_sigmas", "global_norm", "adaptive")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a Baichuan-M1 (technical report arXiv 2502.12671, and its reference code)."""

    vocab_size: int = _bounded(256)
    hidden: int = _bounded(2)
    ffn: int = _bounded(1)
    num_layers: int = _bounded(1)
    num_heads: int = _bounded(1)
    """Query heads of a global layer; head_dim is hidden / heads of the layer's kind."""
    num_kv_heads: int = _bounded(1)
    window_num_heads: int = _bounded(1)
    window_num_kv_heads: int = _bounded(1)
    window: int = _bounded(1)
    """Keys that a token of a window layer sees, itself included."""
    norm_eps: float = _bounded(0.0)
    init_std: float = _bounded(0.0)
    """Standard deviation of every initial matrix; the projections back into the residual are scaled by 1/sqrt(2L)."""
    max_positions: int = _bounded(1)
    pattern: tuple[str, ...] = ("global", "window")
    """Kinds of the layers in order, repeated until num_layers are made."""
    param_dtype: str = _bounded(choices=DTYPES, default="float32")
    compute_dtype: str = _bounded(choices=DTYPES, default="float32")
    attention: str = _bounded(choices=("reference", "pallas_tpu", "gpu"), default="reference")
    """Implementation behind `kernels.attention`: on any device, or by the kernels for TPUs or NVIDIA GPUs."""
    normalize_head: bool = True
    """NormHead, as in Baichuan-M1; False uses the head's weight without normalising it, as most other models do."""
    tie_embeddings: bool = False
    """The embedding is the head's weight too."""

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each layer, first to last."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    def heads(self, kind: str) -> tuple[int, int, int]:
        """(query heads, KV heads, head_dim) of a layer kind."""
        if kind == "window":
            return self.window_num_heads, self.window_num_kv_heads, self.hidden // self.window_num_heads
        return self.num_heads, self.num_kv_heads, self.hidden // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Trainable scalars: embedding and head, norms, projections, MLPs, four convolution weights a KV head."""
        total = (1 if self.tie_embeddings else 2) * self.vocab_size * self.hidden + self.hidden
        for kind in self.layer_kinds:
            heads, kv_heads, head_dim = self.heads(kind)
            attention = self.hidden * head_dim * (2 * heads + 2 * kv_heads) + 4 * kv_heads
            total += attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return total


@dataclass(frozen=True)
class SpecialIdsConfig:
    """Ids of special tokens, for a tokenizer made elsewhere whose files do not say them; -1: read from its files."""

    bos: int = _bounded(-1, default=-1)
    eos: int = _bounded(-1, default=-1)
    pad: int = _bounded(-1, default=-1)


@dataclass(frozen=True)
class DataConfig:
    """Where text, tokenizer and rows are, and how rows are packed. An empty path means: inside the run's folder."""

    vocab_size: int = _bounded(512)
    """Size of the tokenizer that `m1 tokenizer train` makes."""
    domains: tuple[str, ...] = ("text",)
    """Names of the kinds of text, in the order of tables; text that names no domain gets the first."""
    vocab_parts: tuple[VocabPartConfig, ...] = ()
    """Whose text decides its ids, in order; other domains join the last part. Empty: every domain is a part, the first
    decides three quarters of the ids and the others equal parts of the rest."""
    tokenizer_bytes: int = _bounded(1, default=100_000_000)
    """Text that it is trained on, at most: small sources whole, large ones evenly over their length."""
    source_bytes: Mapping[str, int] = field(default_factory=dict)
    """Most bytes of a fetched source's text, from its beginning, by source; those not named are taken whole."""
    row_lengths: tuple[int, ...] = (8192,)
    packing_window: int = _bounded(1, default=4096)
    """Documents of one packing window (shuffled once, packed together for every row length)."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Names of the fields (columns) of your records by what they hold: text, id, source, language, domain, difficulty.
    A field that is not listed has that name itself; "" ignores one. The text is in `text` or `content`."""
    domain_names: Mapping[str, str] = field(default_factory=dict)
    """Domains by values of the records' field `domain` and by folders' names; "*": other values; "": the folder's."""
    chat_format: str = ""
    """Of conversations: a name of m1jax.tokenizer.chat.FORMATS; empty: the one that fits the tokenizer."""
    answers: str = _bounded(choices=("all", "last"), default="all")
    """Answers of a conversation that are learned, where a message has no `weight` of its own."""
    long_context: LongContextConfig = field(default_factory=LongContextConfig)
    difficulty_buckets: int = _bounded(1, default=1)
    """A source whose documents have a difficulty is packed in this many parts of equally many documents."""
    workers: int = _bounded(0, default=0)
    """Threads that encode and pack, 0 for all cores; the rows are the same for any number."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """seqio tasks or mixtures that are packed beside the corpus: domain by name."""
    tasks_module: str = ""
    """Module (or .py file) that registers them when it is imported."""
    max_epochs: Mapping[str, float] = field(default_factory=dict)
    """Most times that a run may read a source: by source, by domain ("domain:NAME"), or "*" for all others."""
    heldout_share: float = _bounded(0.0, default=0.02)
    corpus: str = ""
    tokenizer: str = ""
    """Folder that `m1 tokenizer train` fills; or an existing tokenizer: a folder, tokenizer.json or .model file."""
    special_ids: SpecialIdsConfig = SpecialIdsConfig()
    rows: str = ""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; `data = -1` takes all that the other axes leave."""

    replica: int = _bounded(1, default=1)
    """Copies across slices, joined by the data-centre network."""
    data: int = -1
    fsdp: int = _bounded(1, default=1)
    tensor: int = _bounded(1, default=1)
    context: int = _bounded(1, default=1)

    def shape(self, num_devices: int) -> tuple[int, int, int, int, int]:
        """Sizes (replica, data, fsdp, tensor, context) on `num_devices`; raises UserError if they do not divide."""
        others = self.replica * self.fsdp * self.tensor * self.context
        data = num_devices // others if self.data == -1 else self.data
        if data * others != num_devices or data < 1:
            raise UserError(
                f"mesh axes replica {self.replica} x data {self.data} x fsdp {self.fsdp} x tensor {self.tensor} x "
                f"context {self.context} do not make {num_devices} devices: change `mesh` or the number of devices."
            )
        return self.replica, data, self.fsdp, self.tensor, self.context


@dataclass(frozen=True)
class ClipConfig:
    """How unusually large gradients are handled; under every policy a step whose gradient is not finite is skipped."""

    policy: str = _bounded(choices=CLIP_POLICIES, default="skip_spikes")
    """skip_spikes: the report's Algorithm 1. skip_sigmas: skips by standard deviations. global_norm: never skips.
    adaptive: never skips, and scales unit by unit (optax.adaptive_grad_clip) instead of to max_norm."""
    max_norm: float = _bounded(0.0, default=1.0)
    """Global norm that a gradient is scaled down to; 0: it is not. Not for `adaptive`."""
    history: int = _bounded(1, default=100)
    """Accepted norms that a skipping policy looks back on; it acts once it has as many."""
    factor: float = _bounded(0.0, default=1.2)
    margin: float = _bounded(0.0, default=0.1)
    """skip_spikes skips a norm above factor x mean + margin."""
    sigmas: float = _bounded(0.0, default=6.0)
    """skip_sigmas skips a norm above mean + sigmas x standard deviation."""
    max_skips: int = _bounded(0, default=1)
    """Steps skipped in a row, after which an update is forced; those that are not finite are skipped without end."""
    max_ratio: float = _bounded(0.0, default=0.01)
    """adaptive: largest norm of a unit's gradient, as a share of its parameters' norm."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser behind a clip."""

    eps: float = _bounded(0.0)
    name: str = _bounded(choices=OPTIMIZERS, default="adamw")
    """adamw: Loshchilov & Hutter, arXiv 1711.05101; muon: Liu et al., arXiv 2502.16982, for the layers' matrices."""
    b1: float = _bounded(0.0, default=0.9)
    b2: float = _bounded(0.0, default=0.95)
    weight_decay: float = _bounded(0.0, default=0.1)
    no_decay: tuple[str, ...] = ("norm", "conv")
    """Parameters whose path holds one of these words are not decayed."""
    second_moment: str = _bounded(choices=("full", "factored"), default="full")
    """AdamW's, or Adafactor's row and column means (Shazeer & Stern, arXiv 1804.04235): a third less state."""
    muon_momentum: float = _bounded(0.0, default=0.95)
    """Momentum of Muon's matrices; b1, b2 and second_moment are for the parameters that AdamW updates beside them."""
    clip: ClipConfig = ClipConfig()


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop."""

    log_every: int = _bounded(1, default=10)
    checkpoint_every: int = _bounded(1, default=500)
    keep_checkpoints: int = _bounded(1, default=2)
    """The newest that are kept."""
    keep_every: int = _bounded(0, default=0)
    """A checkpoint every this many steps is never deleted; 0: only the newest are kept."""
    emergency_every: int = _bounded(0, default=0)
    """Steps between emergency checkpoints, each process's share on its own machine; 0: none."""
    emergency_folder: str = "/dev/shm/m1jax"
    """Where they are written: memory or a disk of every machine, with room for three times its share of the state."""
    max_nonfinite: int = _bounded(1, default=10)
    """Steps in a row without a finite loss or gradient after which the run stops."""
    loss_chunk: int = _bounded(1, default=512)
    """Tokens whose logits exist at once in the loss."""
    loss_mean: str = _bounded(choices=("tokens", "conversations"), default="tokens")
    """What the loss is the mean of: a batch's targets, or its conversations, each the mean of its own targets."""
    remat: str = _bounded(choices=("none", "dots", "block", "offload"), default="none")
    """What the backward pass keeps: everything, the products, block inputs, or those in the host's memory."""
    unroll: int = _bounded(0, default=4)
    """Most periods of layers that are compiled one by one, not as a loop. On a CPU more of them train faster (5% at 46M
    parameters), and compile longer."""
    accumulation: int = _bounded(1, default=1)
    """Parts of a batch that pass one after the other before the optimiser moves; the gradient is the same."""
    validate_every: int = _bounded(0, default=0)
    """Steps between measurements on held-out text, which also come after the last step; 0: none."""
    validate_tokens: int = _bounded(1, default=4096)
    """Most held-out tokens of each source that are measured."""
    average_decay: float = _bounded(0.0, default=0.0)
    """Decay of a moving average of the weights that is kept beside them, such as 0.999; 0: none is kept."""
    trackers: tuple[str, ...] = ()
    """Where each step's numbers go beside metrics.jsonl and TensorBoard: wandb."""
    initial: str = ""
    """Folder of a model whose parameters the run starts from: imported, exported, or a run's; empty: the seed."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank factors that are trained while the model is frozen, but for what `trained` names."""
    trained: tuple[str, ...] = ()
    """Patterns of the parameters that are trained, such as "layers/*/mlp"; empty: all, or with `lora` only factors."""
    frozen_dtype: str = _bounded(choices=("", *DTYPES), default="")
    """Dtype of the parameters that are not trained; empty: model.param_dtype."""


@dataclass(frozen=True)
class HardwareConfig:
    """The devices that `m1 plan` compiles for by default; training uses the devices of the host."""

    topology: str = "cpu"
    """TPU slice, such as v5p:4x4x4 (chips along each axis of its torus), or cpu."""
    slices: int = _bounded(1, default=1)
    """Slices joined by the data-centre network; `mesh.replica` spreads over them."""


@dataclass(frozen=True)
class RunConfig(RunFolders):
    """A whole run, from text to a trained model; the paths of what it writes are in RunFolders."""

    name: str
    folder: str
    """Folder of everything that the run makes."""
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    stages: tuple[StageConfig, ...]
    objective: str = "next_token"
    """What is minimised: a name of m1jax.objectives."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    mesh: MeshConfig = MeshConfig()
    hardware: HardwareConfig = HardwareConfig()
    train: TrainConfig = TrainConfig()
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    seed: int = 0
    """All the randomness of a run: the first parameters and the order of the data; see m1jax/config/seeds.py."""

    @functools.cached_property
    def timeline(self) -> Timeline:
        """Stage, rows and tokens of every step."""
        return Timeline(self.stages)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return self.timeline.steps


def to_dict(config: Any) -> Any:
    """A config dataclass as plain dicts, lists and scalars, ready for JSON."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {name: to_dict(value) for name, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return config
