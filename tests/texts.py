"""Text of our own for tests: sentences about diseases that do not exist, in two domains and two languages."""

import json
import random
from pathlib import Path

SYLLABLES = ("ba", "cor", "den", "fil", "gra", "hem", "lom", "mer", "nos", "pul", "ren", "tox", "vas", "zi")
HAN = "心肺肝肾病热痛血气水火山石田木林"


def sentences(seed: int, count: int) -> list[str]:
    """Documents in which a made-up name comes back: what attention can copy and a bigram cannot."""
    rng = random.Random(seed)
    documents = []
    for number in range(count):
        name = "".join(rng.choices(SYLLABLES, k=3))
        sign = "".join(rng.choices(SYLLABLES, k=2))
        han = "".join(rng.choices(HAN, k=6))
        lines = [
            f"{name.capitalize()}itis is a disease of the {sign}; {name}itis was described {rng.randint(2, 97)} times.",
            f"In {name}itis the {sign} is larger than in other diseases, and the {sign} hurts. {han}，{han}。",
            f"No cure of {name}itis is known; case {number} of {name}itis recovered.",
        ]
        documents.append(" ".join(lines[: rng.randint(1, 3)] * rng.randint(1, 3)))
    return documents


def write(folder: Path, count: int = 150) -> Path:
    """A folder as a user might bring one: general/ and medical/, text, JSON lines and one bad file."""
    for seed, domain in enumerate(("general", "medical")):
        place = folder / domain
        place.mkdir(parents=True)
        with open(place / f"{domain}-cases.jsonl", "w", encoding="utf-8") as file:
            # Ids restart in every file, as they do in real folders.
            for number, text in enumerate(sentences(seed, count)):
                file.write(json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n")
    (folder / "general" / "bad.txt").write_bytes(b"\xff\xfe broken \xc3")
    return folder
