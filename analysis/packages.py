"""Packages of public registries, fetched by the user's own tools, checked by SHA-256, and read without being run."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# registry -> the command that puts a package's file into the current folder
COMMANDS = {
    "npm": ("npm", "pack", "--silent"),
    "pip": (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."),
    "apt-get": ("apt-get", "download", "--quiet"),
}
AR_MARK, AR_HEADER = b"!<arch>\n", 60  # bytes; a .deb is such an archive


@dataclass(frozen=True)
class Package:
    registry: str  # a key of COMMANDS
    spec: str
    file: str
    sha256: str
    licence: str


def fetch(package: Package, folder: Path) -> Path:
    """Returns the path of the package's file. Fetches the file if it is not in the folder; exits if its SHA-256 is not
    the package's."""
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = COMMANDS[package.registry]
        print(f"fetching {package.spec} by {package.registry}", flush=True)
        found = shutil.which(command[0])
        done = found and subprocess.run([*command, package.spec], cwd=folder, stdout=subprocess.DEVNULL).returncode == 0
        if not done or not path.exists():
            sys.exit(f"{package.registry} gave no {package.file}; fetch {package.spec} and put it into {folder}")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        given = f"{path} has the SHA-256 {found[:16]}..., and {package.spec} has {package.sha256[:16]}..."
        sys.exit(f"{given}; remove the file, and do not use it")
    return path


def read_member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as file:
        return file.extractfile(name).read()


def read_members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """{name: content} of the named files of an archive, .tgz or .deb, in one pass. Exits if one is not there."""
    wanted, found = set(names), {}
    with (
        tarfile.open(fileobj=io.BytesIO(_deb_data(archive)))
        if archive.suffix == ".deb"
        else tarfile.open(archive) as file
    ):
        for about in file:
            name = about.name.removeprefix("./")
            if name in wanted and about.isfile():
                found[name] = file.extractfile(about).read()
    if lacking := sorted(wanted - set(found)):
        sys.exit(f"{archive} has no {lacking[0]}; it is another version, so remove it")
    return found


def _deb_data(archive):
    """The archive of files within a .deb: the member data.tar of an `ar` archive."""
    data = archive.read_bytes()
    place = len(AR_MARK)
    while data.startswith(AR_MARK) and place + AR_HEADER <= len(data):
        header = data[place : place + AR_HEADER]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        place += AR_HEADER
        if name.startswith("data.tar"):
            return data[place : place + size]
        place += size + size % 2
    sys.exit(f"{archive} is no Debian package; remove it")
