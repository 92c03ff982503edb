"""A TFDS data set stored as ArrayRecord: `tfds:NAME`, `tfds:NAME:SPLIT` or `tfds:/folder/of/a/version`.

TFDS reads such files without TensorFlow. A data set stored as TFRecord is refused, with the command that converts it.
Images stay encoded as stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rfjax.errors import ConfigError
from rfjax.prepare.libraries import require
from rfjax.prepare.sources import CAPTION_COLUMNS, CLIPS, IMAGES, Drop, Record, listing_hash


@dataclass(frozen=True)
class TfdsSource:
    location: str
    listing: str
    data: object  # random access to examples
    image: str
    label: str | None
    class_names: tuple[str, ...] | None
    columns: tuple[str, ...]
    shard_size: int
    passed_over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind: str = "tfds"
    noticed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        count = len(self.data)
        return [min(self.shard_size, count - start) for start in range(0, count, self.shard_size)]

    @property
    def keys(self) -> Iterator[str]:
        """Yields the keys of all images, without reading any."""
        return (f"{index:09}" for index in range(len(self.data)))

    def records(self, part: int) -> Iterator[Record | Drop]:
        start = part * self.shard_size
        for index in range(start, start + self.sizes[part]):
            values = dict(self.data[index])
            image = values.pop(self.image)
            key, done = f"{index:09}", index - start + 1
            if isinstance(image, bytes):
                yield Record(key, image, {name: _plain(value) for name, value in values.items()}, done)
            else:
                yield Drop(key, "no image", f"feature {self.image} holds no bytes", done)


def _plain(value):
    """Converts a feature to a column's value: texts stay bytes, arrays become lists or numbers."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def open_source(
    where: str, shard_size: int, caption_column: str | None, suffixes: Sequence[str] = IMAGES
) -> TfdsSource:
    if suffixes is CLIPS:
        raise ConfigError(f"clips of TFDS are not read, and the source is tfds:{where}; write its files into a folder")
    tfds = require("tensorflow_datasets", "reading TFDS needs tensorflow-datasets, without TensorFlow")
    name, _, split = where.partition(":")
    split = split or "train"
    try:
        builder = tfds.builder_from_directory(name) if Path(name).is_dir() else tfds.builder(name)
    except Exception as error:  # an unknown name, a folder without a data set and more
        remedy = "give a name that TFDS knows, or the folder of a version"
        raise ConfigError(f"tfds:{name} cannot be opened: {str(error).splitlines()[0]}; {remedy}") from None
    folder = Path(str(builder.data_dir))
    if not folder.is_dir():
        remedy = f"fetch it with: tfds build {name} --file_format=array_record"
        raise ConfigError(f"tfds:{name} is not on this machine (TFDS looks in {folder}); {remedy}")
    stored = builder.info.file_format.value
    if stored != "array_record":
        new = f"{folder}-array_record"
        command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record --out_dir={new}"
        raise ConfigError(f"tfds:{name} is stored as {stored}, not for random access; give tfds:{new} after: {command}")
    if split.partition("[")[0] not in builder.info.splits:
        raise ConfigError(f"tfds:{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    features = builder.info.features
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if not images:
        lack = f"tfds:{name} has no image among its features {', '.join(features)}"
        raise ConfigError(f"{lack}; give a data set of images")
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    captioned = caption_column or next((key for key in CAPTION_COLUMNS if key in features), None)
    label = labels[0] if labels and not captioned else None
    data = builder.as_data_source(split=split, decoders={images[0]: tfds.decode.SkipDecoding()})
    listing = listing_hash([(builder.info.full_name, split, len(data), sorted(features))])
    return TfdsSource(
        location=f"{builder.info.full_name}:{split}",
        listing=listing,
        data=data,
        image=images[0],
        label=label,
        class_names=tuple(features[label].names) if label else None,
        columns=tuple(features),
        shard_size=shard_size,
    )
