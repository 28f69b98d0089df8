"""What do ELO, TDPO and PPO, one after the other, add on entities that no training has seen?

The chain begins with the quickstart's fine-tuned model: `m1 rl` (ELO), `m1 prefer` (TDPO2), `m1 rl` (PPO with the words
of the answer as reward), each from the model that the one before left, for every seed. After each of them the 1,500
test questions of `m1 synthesize`, which are about other entities, are answered twice: by the likelihood of the choices,
which are not listed (`m1 eval --form chat-cloze`), and in free text, greedily, scored by the rewards `words` and
`entity` (a parent of the right one counts half). "Peer" is the model before; intervals are over questions, of means
over the seeds, question by question.

    python benchmarks/alignment.py --quickstart runs/quickstart --folder runs/alignment --json alignment.json

What is complete in the folder is not made again.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from runs import HERE, config_text, verb
from table import machine, row, show, write

STEPS = ("sft", "elo", "tdpo", "ppo")
ANSWER_TOKENS = 32
HELDOUT_PROMPTS = {"elo": 64, "ppo": 512}
"""Of conversations that are held out, for the curves of a run; the table does not need them."""
MEASURES = ("choice", "words", "entity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, required=True, metavar="FOLDER", help="of a finished quickstart")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="for the runs and answers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    source, folder = args.quickstart.absolute(), args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    before = measured(source / "sft", source, folder / "sft")
    found = {step: {name: [] for name in MEASURES} for step in STEPS}
    for seed in args.seeds:
        models = chain(seed, args.seeds[0], source, folder)
        print("\n".join(curve(models[step]) for step in ("elo", "ppo")))
        for step in STEPS:
            answers = before if step == "sft" else measured(models[step], source, folder / f"{step}-{seed}-eval")
            for name in MEASURES:
                found[step][name].append(answers[name])
    rows = table(found, args.seeds)
    print(machine(["jax"]) + f"; load {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def chain(seed: int, first: int, source: Path, folder: Path) -> dict[str, Path]:
    """The folders of the three runs of a seed, each trained from the one before."""
    models = {step: folder / f"{step}-{seed}" for step in STEPS[1:]}
    for place, (step, model) in enumerate(models.items()):
        initial = source / "sft" if place == 0 else models[STEPS[place]]
        changes: dict[str, Any] = {"folder": str(model), "seed": seed, "train.initial": str(initial)}
        same = folder / f"{step}-{first}"
        if seed != first and not model.exists():  # prompts, pairs and tokenizer are those of every seed
            for part in ("corpus", "tokenizer"):
                shutil.copytree(same / part, model / part)
        config = folder / f"{step}-{seed}.py"
        if step == "tdpo":
            config.write_text(config_text("prefer_quickstart", changes, {"preferences": {}}), encoding="utf-8")
            verb("prefer", "--config", str(config), "--preferences", str(source / "synthesis" / "preferences"))
        else:
            changes |= {"policy.methods": {step: step}, "policy.heldout_prompts": HELDOUT_PROMPTS[step]}
            config.write_text(config_text("rl_quickstart", changes, {step: {}}), encoding="utf-8")
            verb("rl", "--config", str(config), "--conversations", str(source / "synthesis" / "train"))
    return models


def measured(model: Path, source: Path, out: Path) -> dict[str, np.ndarray]:
    """Each measure of a model by question, from 0 to 1."""
    from m1jax.evaluate import answers

    asked = ["--questions", str(source / "synthesis" / "test"), "--form", "chat-cloze"]
    verb("eval", "--model", str(model), *asked, "--out", str(out), "--json")
    found = answers.read(next(out.glob("*/items.jsonl")))
    outcomes = answers.outcomes(found)
    kept = out / "written.json"
    if not kept.exists():
        kept.write_text(json.dumps(written(model, found.items)))
    measures = {"choice": [outcomes[item.id].right for item in found.items], **json.loads(kept.read_text())}
    return {name: np.array(values, np.float64) for name, values in measures.items()}


def written(model: Path, items: Sequence[Any]) -> dict[str, list[float]]:
    """Answers in free text, scored by rules."""
    from m1jax.config import file as config_file
    from m1jax.generate import Sampling
    from m1jax.loading import load
    from m1jax.rollouts.rewards import words
    from m1jax.tokenizer import chat as chats
    from m1jax.verbs.rl import entities

    language, tokenizer = load(model)
    talk = chats.of(tokenizer)
    entity = entities(config_file.load(str(HERE / "configs" / "quickstart.py")))
    asked = [talk.encode([{"role": "user", "content": item.question}], add_generation_prompt=True) for item in items]
    said = language.batcher(32).run(
        asked, max_new_tokens=ANSWER_TOKENS, sampling=Sampling(), eos_id=[*talk.ends, tokenizer.eos_id]
    )
    texts = []
    for ids, (one,) in zip(asked, said, strict=True):
        tokens = one.tokens[:-1] if one.finish_reason == "eos" else one.tokens
        texts.append(tokenizer.decode(tokens, before=list(ids)))
    references = [item.choices[item.answer] for item in items]
    return {
        "words": [words("", text, reference) for text, reference in zip(texts, references, strict=True)],
        "entity": [entity("", text, reference) for text, reference in zip(texts, references, strict=True)],
    }


def curve(model: Path) -> str:
    """What a run of `m1 rl` gained on held-out conversations, which every seed asks others of."""
    from m1jax.train.run import records

    lines, steps = records.read(model / "train" / "samples.jsonl"), records.read(model / "train" / "metrics.jsonl")
    ends = [
        f"{line['heldout_reward']:.3f} ± {1.96 * line['heldout_reward_error']:.3f}" for line in (lines[0], lines[-1])
    ]
    exact = [f"{line['heldout_reward/exact']:.3f}" for line in (lines[0], lines[-1])]
    gain, error = lines[-1]["heldout_gain"], lines[-1]["heldout_gain_error"]
    kl, seconds = max(line.get("rollout_kl", 0.0) for line in steps), steps[-1]["time"] - steps[0]["time"]
    return (
        f"{model.name}: reward {' to '.join(ends)}, gain {gain:+.3f} ({error:.3f}), exact {' to '.join(exact)}, "
        f"KL at most {kl:.2f}, {seconds:.0f} s"
    )


def table(found: Mapping[str, Mapping[str, list[np.ndarray]]], seeds: list[int]) -> list[Any]:
    """Prints every step by seed, and the difference to the step before with its interval; rows of the means."""
    rows = []
    for name in MEASURES:
        print(f"{name}, percent: mean over seeds ({', '.join(map(str, seeds))}); difference to the step before")
        for place, step in enumerate(STEPS):
            each = [100 * answers.mean() for answers in found[step][name]]
            said = f"  {step}: {np.mean(each):.1f} ({', '.join(f'{one:.1f}' for one in each)})"
            if place:
                before = found[STEPS[place - 1]][name]
                differences = 100 * (np.mean(found[step][name], axis=0) - np.mean(before, axis=0))
                half = 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
                said += (
                    f"; {differences.mean():+.1f} ({differences.mean() - half:+.1f}, {differences.mean() + half:+.1f})"
                )
                rows.append(row(f"{name}/{step}", np.mean(each), 100 * np.mean(before), STEPS[place - 1], "%"))
            print(said)
    return rows


if __name__ == "__main__":
    main()
