"""Walks a user's folder: lists the files to read, and the files and folders that it passed over."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rfjax.inputs.files import why_not_plain

# Folders that operating systems and programs make for their own use; many hold copies of the user's files.
SYSTEM_FOLDERS = {
    "__macosx",
    "__pycache__",
    "$recycle.bin",
    "#recycle",
    "@eadir",
    "lost+found",
    "recycler",
    "system volume information",
}


# Formats of pictures and clips that rfjax cannot read. Files in these formats are reported, never left out silently.
UNREAD_SUFFIXES = frozenset(
    ".apng .arw .avi .avif .cr2 .cr3 .dds .dng .eps .exr .hdr .heic .heif .ico .jxl .m4v .mkv .mov .mp4 .mpg "
    ".nef .pcx .pgm .pdf .pnm .psd .svg .tga .webm .xcf".split()
)
UNREAD = "files of formats that are not read"


@dataclass(frozen=True)
class Walk:
    """The files of a folder that have one of the wanted suffixes, and what was passed over, by reason."""

    files: tuple[tuple[str, int], ...]  # (path inside the folder, with "/"; size in bytes), sorted by path
    passed_over: Mapping[str, tuple[str, ...]]  # reason -> paths inside the folder; a folder's ends in "/"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.files)

    def describe_passed_over(self) -> list[str]:
        """Returns one line for each reason, as `describe` writes it."""
        return describe(self.passed_over)


def describe(passed_over: Mapping[str, Collection[str]], most: int = 3) -> list[str]:
    """Returns one line for each reason, such as "2 hidden folders: .trash/, a/.ipynb_checkpoints/".

    A line has the number of all paths and the names of the first `most`.
    """
    lines = []
    for reason, names in passed_over.items():
        named = ", ".join(ascii(name)[1:-1] if not name.isprintable() else name for name in list(names)[:most])
        lines.append(f"{len(names):,} {reason}: {named}{', ...' if len(names) > most else ''}")
    return lines


def walk_files(root: str | Path, suffixes: Collection[str], *, deep: bool = True, others: Collection[str] = ()) -> Walk:
    """Finds the files below `root` whose suffix, in lower case, is in `suffixes`. If not `deep`, finds only the files
    directly in `root`, and ignores all folders.

    Follows links to folders, but reads each folder once, so that loops end. It passes over, and reports:
    - hidden folders, system folders (`SYSTEM_FOLDERS`), folders already read and folders that cannot be opened;
    - with a suffix in `suffixes`: hidden files, dangling links, pipes and devices;
    - with a suffix in `UNREAD_SUFFIXES` or `others`: files that are not hidden.
    All other files are ignored.
    """
    files: list[tuple[str, int]] = []
    passed_over: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    unread = UNREAD_SUFFIXES | set(others)
    folders, links = [(str(root), "")], []  # (path, name); links last, so that a folder keeps its own name
    while folders or links:
        path, inside = folders.pop() if folders else links.pop(0)
        try:
            identity = _identity(path)
            if identity in seen:
                passed_over.setdefault("links to a folder that is read already", []).append(inside)
                continue
            seen.add(identity)
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            passed_over.setdefault("folders that cannot be opened", []).append(inside or "./")
            continue
        for entry in entries:
            name, is_folder = inside + entry.name, _is_folder(entry)
            if is_folder and not deep:
                continue
            if not is_folder and (suffix := os.path.splitext(entry.name)[1].lower()) not in suffixes:
                if suffix in unread and not entry.name.startswith("."):
                    passed_over.setdefault(UNREAD, []).append(name)
                continue
            why = _why_passed_over(entry, is_folder)
            if why:
                passed_over.setdefault(why, []).append(name + "/" * is_folder)
            elif is_folder:
                (links if entry.is_symlink() else folders).append((entry.path, name + "/"))
            else:
                files.append((name, os.stat(entry.path).st_size))
    return Walk(tuple(sorted(files)), {reason: tuple(sorted(names)) for reason, names in sorted(passed_over.items())})


def _why_passed_over(entry: os.DirEntry, is_folder: bool) -> str:
    if entry.name.startswith("."):
        return "hidden folders" if is_folder else "hidden files"
    if is_folder:
        return "folders of the system" if entry.name.lower() in SYSTEM_FOLDERS else ""
    why = why_not_plain(entry.path)
    return f"names of no file ({why})" if why else ""


def _is_folder(entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _identity(path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino
