"""A run that is killed again and again, beside the same run left alone: its losses, and what the kills cost.

    python benchmarks/kills.py --folder /tmp/kills --kills 20 --plot docs/kills.png

The processes are the training loop with a small loss of its own (tests/train/toy_run.py), or any `m1 train` given by
`--config`. They get SIGKILL at random moments, every third one while a checkpoint is written. Asked: do the losses
of all steps equal the uninterrupted run's, bit for bit? Printed: kills, those during saving, steps taken again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from m1jax.train.hooks.journal import read_journal  # noqa: E402


def command(args: argparse.Namespace, folder: Path) -> list[str]:
    if args.config:
        program = "import sys; from m1jax.verbs import main; sys.exit(main())"
        overrides = [f"folder={folder}", *args.overrides]
        given = [part for override in overrides for part in ("--set", override)]
        return [sys.executable, "-c", program, "train", "--config", args.config, *given]
    return [sys.executable, "-m", "tests.train.toy_run", str(folder), str(args.seconds), str(args.steps), "20"]


def start(args: argparse.Namespace, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.Popen(command(args, folder), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written right now."""
    return any(".orbax-checkpoint-tmp" in path.name for path in (folder / "checkpoints").glob("*"))


def stepped_since(journal: Path, begun: float) -> bool:
    """Whether a step was reported since then."""
    return any(line["time"] > begun for line in read_journal(journal)[-1:])


def kill_often(args: argparse.Namespace, folder: Path) -> list[dict]:
    """Starts the run until it ends by itself, killing the first `--kills` starts; a record of every kill."""
    rng, journal, kills = random.Random(args.seed), folder / "train" / "metrics.jsonl", []
    while True:
        process = start(args, folder)
        if len(kills) == args.kills:
            assert process.wait() == 0
            return kills
        begun = time.time()
        # Every third start is killed in a save; the others some time after their first step, one before it.
        in_save = len(kills) % 3 == 2
        if len(kills) == 3:
            time.sleep(rng.uniform(0.2, 2))
        else:
            while process.poll() is None and not stepped_since(journal, begun):
                time.sleep(0.05)
            time.sleep(rng.uniform(0, args.longest))
            while in_save and process.poll() is None and not saving(folder):
                time.sleep(0.001)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not ended or process.returncode == 0, f"the run failed by itself: status {process.returncode}"
        if ended:
            return kills
        lines = read_journal(journal)
        during = saving(folder)
        kills.append({"step": int(lines[-1]["step"]) if lines else 0, "while_saving": during})
        print(f"kill {len(kills)}: after step {kills[-1]['step']}{', while saving' if during else ''}", flush=True)


def plot(whole: list[dict], survived: list[dict], kills: list[dict], path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [line["step"] for line in whole]
    axes.plot(steps, [line["loss"] for line in whole], color="0.7", linewidth=5, label="left alone")
    axes.plot(steps, [line["loss"] for line in survived], color="tab:blue", linewidth=1.2, label="killed and continued")
    for while_saving, colour in ((False, "tab:red"), (True, "tab:orange")):
        chosen = [kill["step"] for kill in kills if kill["while_saving"] == while_saving]
        label = f"{len(chosen)} kills{' while a checkpoint was written' if while_saving else ''}"
        for i, step in enumerate(chosen):
            axes.axvline(step, color=colour, linewidth=0.9, alpha=0.7, label=None if i else label)
    axes.set(xlabel="step", ylabel="loss, nats a token", xlim=(0, steps[-1]))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--config", help="a run of `m1 train` with its rows packed, instead of the small loss")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.05, help="least seconds a step (small loss only)")
    parser.add_argument("--steps", type=int, default=80, help="steps of each of the three stages (small loss only)")
    parser.add_argument("--longest", type=float, default=0.8, help="most seconds from a start's first step to its kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="draw both runs into this picture")
    parser.add_argument("--json", help="write the record")
    args = parser.parse_args()
    begun = time.time()
    whole_folder, folder = args.folder / "whole", args.folder / "killed"
    assert start(args, whole_folder).wait() == 0
    kills = kill_often(args, folder)
    whole, survived = (read_journal(where / "train" / "metrics.jsonl") for where in (whole_folder, folder))
    same = [line["loss"] for line in whole] == [line["loss"] for line in survived]
    record = {
        "kills": len(kills),
        "while_saving": sum(kill["while_saving"] for kill in kills),
        "steps": len(whole),
        "same_bits": same,
        "seconds": round(time.time() - begun),
    }
    print(json.dumps(record))
    if args.json:
        Path(args.json).write_text(json.dumps({**record, "at": kills}, indent=1) + "\n")
    if args.plot:
        plot(whole, survived, kills, args.plot)
    if not same:
        sys.exit("the losses of the run that was killed differ from those of the run left alone")


if __name__ == "__main__":
    main()
