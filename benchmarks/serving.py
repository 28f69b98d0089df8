"""How fast does `m1 serve` answer many clients at once on this machine's CPU?

SmolLM2-135M-Instruct's weights (tests/convert/smollm2.py) behind each server; a closed loop of clients, each of which
asks again as soon as it has its answer, with prompts of 32 to 512 random tokens and answers of 8 to 128 (seeded, the
same for all servers), temperature 1, streamed. The servers are up together and take turns, so that one of them computes
at a time; a turn of other prompts comes before and is left out. What counts are the tokens that were asked for, and
when they arrive at the client, whose own CPU seconds are told.

    python benchmarks/serving.py --vllm vllm_venv/bin/python --json serving.json
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from smollm2_models import NAMES, ROOT, write_models
from table import Row, machine, row, show, write

PROMPT, ANSWER, CONTEXT = (32, 512), (8, 128), 1024
HISTORY = 512
"""Tokens of the first turn of a chat whose second turn is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM's CPU build")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--requests", type=int, default=1000, help="of a turn")
    parser.add_argument("--warm-up", type=int, default=64, help="requests before, left out")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--turns", type=int, default=1, help="of each server")
    parser.add_argument("--log", metavar="DIR", help="keep the servers' logs")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_models(folder)
        for dtype in args.dtypes:
            rows += measured(folder, dtype, args)
    print(f"{machine(['jax'])}; load {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


@dataclass
class Answers:
    """What a turn's clients saw."""

    seconds: float = 0.0
    client: float = 0.0
    """CPU seconds of the clients."""
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    between: list[float] = field(default_factory=list)
    """Seconds between tokens, of each answer the mean."""
    gap: list[float] = field(default_factory=list)
    """The longest silence within each answer, seconds."""


def measured(folder: Path, dtype: str, args: argparse.Namespace) -> list[Row]:
    """Rows of one dtype."""
    logs = Path(args.log or folder)
    commands = {"m1jax": ours(folder, dtype, args)}
    if args.vllm:
        commands["vllm"] = vllm(folder, dtype, args)
    found: dict[str, list[Answers]] = {side: [] for side in commands}
    with contextlib.ExitStack() as stack:
        addresses = {
            side: stack.enter_context(serving(command, logs / f"{side}-{dtype}.log"))
            for side, command in commands.items()
        }
        for side, address in addresses.items():
            turn(address, args.warm_up, args.clients, seed=0)
            print(f"{side} {dtype}: warm", file=sys.stderr)
        for number in range(args.turns):
            for side, address in addresses.items():
                answers = turn(address, args.requests, args.clients, seed=number + 1)
                found[side].append(answers)
                print(f"{side} {dtype}: {described(answers)}", file=sys.stderr)
        second, fresh = turns_of_a_chat(addresses["m1jax"])
    condition = f"{dtype}, {args.requests} requests of {args.clients} clients"
    rows = [
        row(
            f"{what}/{condition}",
            read(found["m1jax"]),
            read(found[side]),
            NAMES[side],
            unit,
            less_is_better=unit == "s",
        )
        for side in list(commands)[1:]
        for what, unit, read in MEASURES
    ]
    name = f"second turn, first token/{dtype}, {HISTORY} tokens of history"
    return [*rows, row(name, second, fresh, "a prompt as long, not seen before", "s", less_is_better=True)]


def median(values: Any) -> float:
    return float(statistics.median(values))


def last_percent(values: list[float]) -> float:
    return float(np.percentile(values, 99))


MEASURES: tuple[tuple[str, str, Callable[[list[Answers]], float]], ...] = (
    ("served tokens", "token/s", lambda turns: median(one.tokens / one.seconds for one in turns)),
    ("first token, median", "s", lambda turns: median(median(one.first) for one in turns)),
    ("first token, 99th percentile", "s", lambda turns: median(last_percent(one.first) for one in turns)),
    ("between tokens, median", "s", lambda turns: median(median(one.between) for one in turns)),
    ("longest silence, 99th percentile", "s", lambda turns: median(last_percent(one.gap) for one in turns)),
    ("clients' CPU", "s", lambda turns: median(one.client for one in turns)),
)
"""What a row says, its unit, and how it is read from a server's turns."""


def described(answers: Answers) -> str:
    return (
        f"{answers.tokens / answers.seconds:.1f} token/s, first token {median(answers.first):.2f} s, 99th percentile "
        f"{last_percent(answers.first):.2f} s, between tokens {1000 * median(answers.between):.0f} ms, clients "
        f"{answers.client:.1f} of {answers.seconds:.1f} s"
    )


def ours(folder: Path, dtype: str, args: argparse.Namespace) -> list[str]:
    program = "import sys; from m1jax.verbs.program import run; sys.exit(run())"
    return [
        sys.executable, "-P", "-c", program, "serve", "--model", str(folder / "ours"), "--name", "smollm2",
        "--dtype", dtype, "--max-batch", str(args.clients), "--cache-gib", "4", "--context", str(CONTEXT),
    ]  # fmt: skip


def vllm(folder: Path, dtype: str, args: argparse.Namespace) -> list[str]:
    return [
        args.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "theirs"),
        "--served-model-name", "smollm2", "--dtype", dtype, "--max-model-len", str(CONTEXT),
        "--max-num-seqs", str(args.clients), "--enable-prefix-caching",
    ]  # fmt: skip


@contextlib.contextmanager
def serving(command: list[str], log: Path) -> Iterator[str]:
    """The address of a server that has begun to answer; it is ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(os.cpu_count()), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "4",
    }  # fmt: skip
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("w") as written,
        subprocess.Popen(command, env=environment, stdout=written, stderr=subprocess.STDOUT) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 600
            while not answers(address):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"a server did not begin: {log.read_text()[-2000:]}")
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def requests_of(count: int, seed: int) -> list[tuple[list[int], int]]:
    """Prompts, and the tokens that each asks for."""
    rng = np.random.default_rng([2, seed])
    lengths = zip(rng.integers(*PROMPT, count, endpoint=True), rng.integers(*ANSWER, count, endpoint=True), strict=True)
    return [(rng.integers(100, 30_000, length).tolist(), int(limit)) for length, limit in lengths]


def turn(address: str, requests: int, clients: int, seed: int) -> Answers:
    """A closed loop of clients."""
    found, left = Answers(), iter(requests_of(requests, seed))

    async def client(connection: httpx.AsyncClient) -> None:
        for prompt, limit in left:
            await ask(connection, prompt, limit, found)

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as connection:
            await asyncio.gather(*(client(connection) for _ in range(clients)))

    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    asyncio.run(all_of_them())
    found.seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_SELF)
    found.client = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


async def ask(connection: httpx.AsyncClient, prompt: list[int], limit: int, found: Answers) -> None:
    """One streamed answer, all of whose tokens must come; without a seed, at which vLLM's CPU build 0.32 ends."""
    body = {
        "model": "smollm2", "prompt": prompt, "max_tokens": limit, "temperature": 1.0, "stream": True,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    begun = last = time.perf_counter()
    first, longest, tokens = 0.0, 0.0, 0
    async with connection.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in lines(answer):
            if not line.startswith(b"data: {"):
                continue
            event, now = json.loads(line[6:]), time.perf_counter()
            assert "error" not in event, event
            if event["choices"]:
                first, longest = first or now - begun, max(longest, now - last if first else 0.0)
                last = now
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    assert tokens == limit, (tokens, limit)
    found.tokens += tokens
    found.first.append(first)
    found.between.append((last - begun - first) / (tokens - 1))
    found.gap.append(longest)


async def lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Lines of an event stream; those of httpx end at U+2028 and its like too, which stand within some tokens."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line


def turns_of_a_chat(address: str) -> tuple[float, float]:
    """Seconds to the first token of a second turn, and of a prompt as long that nobody has read; medians of five."""
    second, fresh = Answers(), Answers()

    async def chats() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=600) as connection:
            for number in range(5):
                rng = np.random.default_rng([3, number])
                history, more = rng.integers(100, 30_000, HISTORY).tolist(), rng.integers(100, 30_000, 24).tolist()
                await ask(connection, history, 8, Answers())
                await ask(connection, [*history, *more], 8, second)
                other = rng.integers(100, 30_000, HISTORY + 24).tolist()
                await ask(connection, other, 8, fresh)

    asyncio.run(chats())
    return median(second.first), median(fresh.first)


if __name__ == "__main__":
    main()
