"""The same tasks as seqio.Tasks, run through seqio.Evaluator (DESIGN.md, decision 7).

One example is one choice of one item (seqio's rank classification): `inputs` are the tokens of the prompt, `targets`
those of the choice, and the scores of an item's choices meet again in the metric. Needs the extra `m1jax[data]`;
seqio and TensorFlow are imported when an evaluation starts, never before.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from m1jax.evaluate.choice import METRICS, Request, Result, count_hits, requests, summarise
from m1jax.evaluate.forms import Asked
from m1jax.evaluate.items import Item
from m1jax.evaluate.scoring import Scorer
from m1jax.tokenizer.seqio_vocabulary import import_seqio


def seqio_task(name: str, items: Sequence[Item], asked: Sequence[Request], vocab_size: int) -> Any:
    """Registers the items under `name` with seqio, split "test", and returns the seqio.Task.

    Its metric takes (targets, scores) and gives the accuracy by each metric of `METRICS`.
    """
    seqio, tf = import_seqio()

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del split, shuffle_files, seed
        ids = tf.TensorSpec([None], tf.int32)
        index = tf.TensorSpec([], tf.int32)
        return tf.data.Dataset.from_generator(
            lambda: map(_example, asked),
            output_signature={"inputs": ids, "targets": ids, "item": index, "choice": index},
        )

    def accuracy(targets: Sequence[tuple[int, int]], scores: Sequence[float]) -> dict[str, float]:
        by_item = [[0.0] * len(item.choices) for item in items]
        for (item, choice), score in zip(targets, scores, strict=True):
            by_item[item][choice] = float(score)
        return {metric: hits / len(items) for metric, hits in count_hits(items, by_item).items()}

    feature = seqio.Feature(seqio.PassThroughVocabulary(vocab_size), add_eos=False, dtype=tf.int32)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=("test",), caching_permitted=False),
        preprocessors=[],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=_item_and_choice,
        metric_fns=[accuracy],
    )


def _example(request: Request) -> dict[str, Any]:
    tokens = np.array(request.tokens, np.int32)
    return {
        "inputs": tokens[: request.first],
        "targets": tokens[request.first :],
        "item": np.int32(request.item),
        "choice": np.int32(request.choice),
    }


def _item_and_choice(decoded: Any, example: dict[str, Any], is_target: bool) -> tuple[int, int]:
    """What stands for a target in the metric: whose choice it is."""
    del decoded, is_target
    return int(example["item"]), int(example["choice"])


def _score_dataset(dataset: Any, scorer: Scorer) -> list[tuple[int, float]]:
    """The score_fn of seqio.Evaluator: (index, log-likelihood of the targets in nats) of each example."""
    examples = list(dataset.as_numpy_iterator())
    rows = [
        (np.concatenate([example["inputs"], example["targets"]]), len(example["inputs"])) for _, example in examples
    ]
    return [(int(index), score) for (index, _), score in zip(examples, scorer(rows), strict=True)]


def _metrics(seqio: Any, name: str, scorer: Scorer) -> dict[str, float]:
    """What seqio.Evaluator finds for the registered task."""
    from absl import logging  # comes with seqio

    # The Evaluator of seqio 0.0.20 asks every converter for two attributes that its own pass-through one lacks.
    converter = type("Unchanged", (seqio.PassThroughFeatureConverter,), {"TASK_FEATURES": {}, "pack": False})
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns that it writes no log file
    try:
        evaluator = seqio.Evaluator(name, feature_converter=converter(), eval_split="test", async_compute_metrics=False)
        metrics, _ = evaluator.evaluate(compute_metrics=True, score_fn=lambda dataset: _score_dataset(dataset, scorer))
    finally:
        logging.set_verbosity(verbosity)
    return metrics.result()[name]


def evaluate(name: str, metric: str, items: Sequence[Item], asked: Sequence[Asked], scorer: Scorer) -> Result:
    """`choice.evaluate` by way of seqio.Evaluator: the same requests, scorer and metric, and the same numbers.

    Raises UserError where seqio is not installed, or a choice alone is as long as the scorer's longest row.
    """
    seqio, _ = import_seqio()
    begin = time.perf_counter()
    made, shortened = requests(asked, items, scorer.max_tokens)
    registered = f"m1jax_{name.replace('-', '_')}"
    seqio_task(registered, items, made, 1 + max(max(request.tokens) for request in made))
    try:
        accuracies = _metrics(seqio, registered, scorer)
    finally:
        seqio.TaskRegistry.remove(registered)
    return summarise(
        name,
        metric,
        items,
        {metric: round(accuracies[metric] * len(items)) for metric in METRICS},
        shortened=shortened,
        tokens=sum(len(request.tokens) for request in made),
        seconds=time.perf_counter() - begin,
    )
