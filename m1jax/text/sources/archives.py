"""Reading members of the archives that registries serve, without unpacking them on disk."""

import contextlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path


def wheel_member(path: Path, name: str) -> bytes:
    """The bytes of one member of a wheel (a zip archive)."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def tar_members(file: Path | io.BytesIO, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Name → bytes of the wanted regular members of a tar archive under any compression that Python knows."""
    found = {}
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open(file, "rb")) if isinstance(file, Path) else file
        archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:*"))
        for member in archive:
            if member.isfile() and wanted(member.name):
                content = archive.extractfile(member)
                assert content is not None, member.name
                found[member.name] = content.read()
    return found


def deb_members(path: Path, names: set[str]) -> dict[str, bytes]:
    """Name (as installed, without the leading slash) → bytes of members of a Debian package.

    A .deb is an `ar` archive (deb(5)): an 8-byte magic, then members of a 60-byte header whose bytes 0–16 are the name
    and 48–58 the size in decimal, each padded to an even offset; `data.tar.*` holds the files.
    """
    with open(path, "rb") as file:
        assert file.read(8) == b"!<arch>\n", path
        while header := file.read(60):
            size = int(header[48:58])
            if header[:16].strip().startswith(b"data.tar"):
                found = tar_members(io.BytesIO(file.read(size)), lambda name: name.removeprefix("./") in names)
                return {name.removeprefix("./"): content for name, content in found.items()}
            file.seek(size + size % 2, io.SEEK_CUR)
    raise AssertionError(f"{path} has no data.tar")
