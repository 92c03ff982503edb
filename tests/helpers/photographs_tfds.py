"""The photographs as a TFDS builder, stored as ArrayRecord without TensorFlow."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from helpers import photographs


def write_tfds(data_dir, names, features="caption"):
    """The folder of the version. `features`: caption, captions (as COCO has them) or label."""
    kinds = {
        "caption": {"caption": tfds.features.Text()},
        "captions": {"captions": tfds.features.Sequence({"text": tfds.features.Text()})},
        "label": {"label": tfds.features.ClassLabel(names=["tabby_cat", "n02123045"])},
    }
    texts = {
        "caption": lambda name: photographs.FILES[name][1],
        "captions": lambda name: [{"text": photographs.FILES[name][1]}, {"text": f"{name} again"}],
        "label": lambda name: len(name) % 2,
    }

    class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {"image": image, "aesthetic": tfds.features.Scalar(np.float32), **kinds[features]}
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, name in enumerate(names):
                path = Path(data_dir, f"{name}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(photographs.encoded(name))
                aesthetic = photographs.columns(name)["aesthetic"]
                yield number, {"image": path, "aesthetic": aesthetic, features: texts[features](name)}

    builder = Photographs(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
