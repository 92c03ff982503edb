"""A corpus of one aspect bucket, for tests of several."""

from dataclasses import dataclass

import numpy as np

from rfjax.data.random import RandomCorpus


@dataclass(frozen=True)
class Part(RandomCorpus):
    """Random latents whose ids begin at `first`."""

    first: int = 0

    def examples(self, indices, split):
        batch = super().examples(indices, split)
        return batch._replace(example_ids=batch.example_ids + np.uint32(self.first))
