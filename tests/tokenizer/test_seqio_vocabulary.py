"""seqio uses our tokenizers as it uses its own vocabularies, in Python and inside tf.data."""

import os

import numpy as np
import pytest

from m1jax.tokenizer import extend, train
from m1jax.tokenizer.seqio_vocabulary import _quiet, import_seqio, seqio_vocabulary
from tests.tokenizer.tokenizer_texts import GENERAL, MEDICAL

TEXTS = [*GENERAL[:3], *MEDICAL[:2], "", "🙂 <eos> \x00"]


@pytest.fixture(scope="module")
def tokenizer():
    return extend(train(GENERAL, 480), MEDICAL, 560)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return seqio_vocabulary(tokenizer)


def test_ids(tokenizer, vocabulary):
    assert vocabulary.vocab_size == 560 and vocabulary.unk_id is None
    assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2)
    for text in TEXTS:
        assert vocabulary.encode(text) == tokenizer.encode(text)
        assert vocabulary.decode([*tokenizer.encode(text), 2, *tokenizer.encode("after")]) == text
    assert vocabulary == seqio_vocabulary(tokenizer) != seqio_vocabulary(train(GENERAL, 480))


def test_tensors(tokenizer, vocabulary):
    _, tf = import_seqio()
    for text in TEXTS:
        ids = vocabulary.encode_tf(tf.constant(text))
        assert ids.dtype == tf.int32 and ids.numpy().tolist() == tokenizer.encode(text)
    rows = [[*tokenizer.encode(text), 2] for text in TEXTS]
    padded = tf.ragged.constant(rows).to_tensor()
    assert [text.decode() for text in vocabulary.decode_tf(padded).numpy()] == TEXTS
    assert vocabulary.decode_tf(padded[0]).numpy().decode() == TEXTS[0]


def test_a_seqio_task_tokenises_with_it(tokenizer, vocabulary):
    seqio, tf = import_seqio()

    def dataset(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": TEXTS})

    task = seqio.Task(
        "m1_vocabulary_test",
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )
    found = task.get_dataset(sequence_length=None, split="train", shuffle=False).as_numpy_iterator()
    for example, text in zip(found, TEXTS, strict=True):
        np.testing.assert_array_equal(example["targets"], [*tokenizer.encode(text), 2])


def test_what_a_failing_import_wrote_is_not_lost(capfd):
    with pytest.raises(ImportError), _quiet():
        os.write(2, b"reason\n")
        raise ImportError
    assert capfd.readouterr().err == "reason\n"
    with _quiet():
        os.write(2, b"noise\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
