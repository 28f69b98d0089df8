"""Words that were added to a byte-level tokenizer of another origin."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from m1jax import tokenizer as m1_tokenizers
from m1jax.tokenizer import SpecialIds

WORDS = ("µg", "Ménière", "Sjögren", "心律失常", "naïve", "100 µm")


def test_added_words_with_accents_decode_to_themselves(tmp_path):
    """The library takes their letters for its own names of bytes, and gives U+FFFD."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    library = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_tokens(list(WORDS))
    library.save(str(tmp_path / "tokenizer.json"))
    ours = m1_tokenizers.load(tmp_path / "tokenizer.json", SpecialIds(eos=0, bos=1, pad=2))
    for word in WORDS:
        ids = ours.encode(f"a {word}, b")
        assert library.token_to_id(word) in ids
        assert ours.decode(ids) == f"a {word}, b"
