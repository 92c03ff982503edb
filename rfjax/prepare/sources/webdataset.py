"""WebDataset tars: `key.jpg`, `key.txt` and `key.json`, one image for each key. A tar becomes a shard.

The .txt or .caption is the caption; the .json holds columns. Nothing is unpacked. The headers are read first, so that
an image finds its caption anywhere in the tar. An image that cannot be paired with certainty is left out, with a
reason: its name occurs twice, its key has several images or captions, or its member is not a plain file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rfjax.errors import RfjaxError
from rfjax.inputs.json_files import parse_json
from rfjax.inputs.walk import SYSTEM_FOLDERS, UNREAD, UNREAD_SUFFIXES
from rfjax.prepare.sources import IMAGES, Drop, Record, files_of, listing_hash, others_in
from rfjax.prepare.sources.folder import CAPTIONS, SIDECARS

SIDECAR_BYTES = 2**24  # larger files are not sidecars
TWICE = "name that stands twice in the tar"
SEVERAL = "several images under one key"
EMPTY = "tar of nothing that is read"
SEVERAL_SIDECARS = "several captions or .json files under one key"


@dataclass(frozen=True)
class Member:
    """An image, a file of clips or a sidecar in a tar."""

    stem: str  # its path without the last suffix
    key: str  # its path up to the first dot in the file's name: WebDataset's key
    suffix: str  # the last suffix, in lower case
    info: tarfile.TarInfo

    @property
    def is_image(self) -> bool:
        return self.suffix not in SIDECARS

    @property
    def end(self) -> int:
        return self.info.offset_data + self.info.size


@dataclass(frozen=True)
class WebDatasetSource:
    location: str
    listing: str
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]  # bytes
    passed_over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind: str = "webdataset"
    label: str | None = None
    class_names: None = None
    noticed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    suffixes: Sequence[str] = IMAGES  # of the images, or of the files of clips

    def records(self, part: int) -> Iterator[Record | Drop]:
        path, broken, last, left_out = self.paths[part], None, None, False
        members: list[Member] = []
        try:
            with tarfile.open(path, "r:*") as tar:
                try:
                    for info in tar:
                        found = _member(info, self.suffixes)
                        if isinstance(found, Member):
                            members.append(found)
                            last = found.key
                        elif found:
                            left_out = True
                            yield Drop(f"{path.stem}/{_as_text(info.name)}", *found, 0)
                except (tarfile.TarError, OSError, EOFError) as error:
                    # The last image's caption may be in the lost rest, so the image is lost too.
                    broken, members = error, [member for member in members if member.key != last]
                done = 0
                for sample in _samples(members):
                    try:
                        made = list(_records(path, tar, sample))
                    except (tarfile.TarError, OSError, EOFError) as error:
                        broken, last = error, sample[0].key
                        break
                    done = max(done, *(member.end for member in sample))
                    for record in made:
                        yield _at(record, done)
        except (tarfile.TarError, OSError, EOFError) as error:
            broken = error
        if broken:
            why = (
                f"{type(broken).__name__}: {str(broken).splitlines()[0].rstrip(':')}"
                if str(broken)
                else "it is cut off"
            )
            detail = f"{path.name}: {why if self.sizes[part] else 'it is empty'}"
            key = path.name if last is None else f"{path.stem}/{_as_text(last)}"
            yield Drop(key, "rest of a broken tar", detail, self.sizes[part])
        elif last is None and not left_out:
            yield Drop(path.name, EMPTY, "it has neither images nor captions", self.sizes[part])


def _at(record: Record | Drop, done: int) -> Record | Drop:
    return type(record)(**vars(record) | {"done": done})


def _as_text(name: str) -> str:
    """Converts a name, even one that is not UTF-8, to text that can be stored."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _member(info: tarfile.TarInfo, suffixes: Sequence[str]) -> Member | tuple[str, str] | None:
    """Classifies a member of a tar: returns a `Member` to use, (reason, detail) to report, or None to ignore it."""
    path = PurePosixPath(info.name)
    if info.isdir():
        return None
    if not info.isreg() or path.is_absolute() or ".." in path.parts:
        return "unsafe member of a tar", "its name leaves the tar's folder" if info.isreg() else "a link or a device"
    suffix = path.suffix.lower()
    if suffix in {*UNREAD_SUFFIXES, *IMAGES} - set(suffixes) and not path.name.startswith("."):
        return UNREAD, suffix
    if suffix not in {*suffixes, *SIDECARS}:
        return None
    folders = path.parts[:-1]
    if path.name.startswith(".") or any(f.startswith(".") or f.lower() in SYSTEM_FOLDERS for f in folders):
        return (
            ("hidden file", "its name begins with a dot, or its folder is the system's") if suffix in suffixes else None
        )
    try:
        info.name.encode()
    except UnicodeEncodeError:
        return ("name that is not UTF-8", "") if suffix in suffixes else None
    if suffix in SIDECARS and info.size > SIDECAR_BYTES:
        return None
    first = path.name.partition(".")[0]
    return Member(str(path.with_name(path.stem)), str(path.with_name(first)), suffix, info)


def _samples(members: list[Member]) -> Iterator[list[Member]]:
    """Yields the samples of a tar. A sample is a list of the members that belong together.

    By WebDataset's rule, the members of a sample share the name up to the first dot. If names contain dots, as
    `v1.0_cat.jpg` and `v1.0_dog.jpg`, each with its own .txt, the members share the name up to the last dot.
    """
    by_key: dict[str, list[Member]] = {}
    for member in members:
        by_key.setdefault(member.key, []).append(member)
    for group in by_key.values():
        by_stem: dict[str, list[Member]] = {}
        for member in group:
            by_stem.setdefault(member.stem, []).append(member)
        images = {member.stem for member in group if member.is_image}
        sidecars = {member.stem for member in group if not member.is_image}
        if len(images) > 1 and images == sidecars:
            yield from by_stem.values()
        else:
            yield group


def _records(path: Path, tar: tarfile.TarFile, sample: list[Member]) -> Iterator[Record | Drop]:
    """Yields the record of a sample's image. A sample is the members of a tar that belong together. If the sample
    cannot be used, yields a `Drop` with the reason for each image in it, or one `Drop` if it has no image."""
    images = [member for member in sample if member.is_image]
    names = [member.info.name for member in sample]
    twice = sorted({name for name in names if names.count(name) > 1})
    has = ", ".join(PurePosixPath(name).name for name in names[:6])
    alone = len(images) == 1 and all(member.stem == images[0].stem for member in sample)
    name = f"{path.stem}/{images[0].stem if alone else sample[0].key}"
    if not images:
        yield Drop(name, "no image", f"it has {has}")
    elif twice or len(images) > 1:
        reason = TWICE if twice else SEVERAL
        for number, image in enumerate(images):
            place = f"#{number}" if twice else ""
            yield Drop(f"{path.stem}/{image.info.name}{place}", reason, f"the key {sample[0].key} has {has}")
    else:
        beside = {suffix: _of_suffix(sample, images[0], suffix) for suffix in SIDECARS}
        if several := next((members for members in beside.values() if len(members) > 1), None):
            files = ", ".join(member.info.name for member in several)
            yield Drop(name, SEVERAL_SIDECARS, f"the key {sample[0].key} has {files}")
            return
        content = {suffix: _read(tar, member) for suffix, members in beside.items() for member in members}
        try:
            metadata = parse_json(content[".json"]) if ".json" in content else {}
        except ValueError as error:
            yield Drop(name, "unreadable", f"its .json: {error}")
            return
        for suffix in CAPTIONS:
            if suffix in content:
                metadata["caption"] = content[suffix]
        yield Record(name, _read(tar, images[0]), metadata)


def _of_suffix(sample: list[Member], image: Member, suffix: str) -> list[Member]:
    """Returns the sample's files with a suffix: those with the image's name, else those with its key, else all.

    So `a.txt` is the caption of `a.jpg`, even if there is an `a.ocr.txt`.
    """
    members = [member for member in sample if member.suffix == suffix]
    by_name = [member for member in members if member.stem == image.stem]
    return by_name or [member for member in members if member.stem == image.key] or members


def _read(tar: tarfile.TarFile, member: Member) -> bytes:
    content = tar.extractfile(member.info).read()
    if len(content) != member.info.size:
        raise EOFError(f"{member.info.name} is cut off")
    return content


def open_source(
    where: str, shard_size: int, caption_column: str | None, suffixes: Sequence[str] = IMAGES
) -> WebDatasetSource:
    paths = files_of(where, ".tar")
    try:
        sizes = [path.stat().st_size for path in paths]
    except OSError as error:
        raise RfjaxError(f"cannot read {error.filename}: {error.strerror}; replace it, or leave it out") from None
    listing = listing_hash((path.name, size) for path, size in zip(paths, sizes, strict=True))
    return WebDatasetSource(where, listing, tuple(paths), tuple(sizes), others_in(where, ".tar"), suffixes=suffixes)
