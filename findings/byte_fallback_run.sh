#!/bin/bash
# tokenizers: with a byte-fallback decoder, one byte that completes no character turns all bytes in a row into U+FFFD.
#
# Expected: decoding the ids of an answer that was cut inside its last character (by a limit on tokens, say) gives every
# complete character, and one U+FFFD for the incomplete one, as bytes.decode(errors="replace") does.
# Seen: every byte of the run becomes a U+FFFD, so that one missing byte loses the whole Chinese sentence before it.
# What helps: join the bytes of <0x..> tokens yourself, and decode them as UTF-8.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

from tokenizers import Tokenizer, decoders, models

print("tokenizers", importlib.metadata.version("tokenizers"), "Python", sys.version.split()[0])
vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
# The decoder of Gemma's tokenizer.json; Llama's has one more step.
tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])

text = "体温三十九度"
ids = tokenizer.encode(text).ids
assert tokenizer.decode(ids) == text, "the whole text is not decoded"
expected = text.encode()[:-1].decode(errors="replace")
seen = tokenizer.decode(ids[:-1])
print("expected:", expected)
print("seen:    ", seen)
if seen != "\N{REPLACEMENT CHARACTER}" * (len(ids) - 1):
    sys.exit("the behaviour changed")
PYTHON
echo "the behaviour is as described"
