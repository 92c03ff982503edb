"""PickScore: which image people would prefer for a prompt, by a CLIP ViT-H/14 trained on their choices.

The score is eq. 1 of Kirstain et al. 2023, "Pick-a-Pic" (arXiv 2305.01569): exp(logit scale) times the cosine of the
embeddings of the image and of the prompt. The published model gives about 20. A folder's score is the mean over images.
"""

from __future__ import annotations

from rfjax.scorers import clip, clip_score
from rfjax.scorers.clip_score import Similarity

TOWER = "ViT-H/14"
PUBLISHED = "PickScore_v1"
PUBLISHED_WEIGHTS: frozenset[str] = frozenset()  # SHA-256 of folders that have been checked against the published model


def scores(model, seen, said):
    """Returns exp(logit scale) * cos for each image, [n]; cos is the cosine of its embedding and its prompt's."""
    return model.model.logit_scale.exp().float() * (clip.unit(seen) * clip.unit(said)).sum(-1)


SIMILARITY = Similarity("pickscore", "PickScore", scores)


def score_folder(folder, model, captions, out, *, batch_size):
    """Scores each image against its caption; see `clip_score.score_folder`."""
    return clip_score.score_folder(folder, model, captions, out, batch_size=batch_size, similarity=SIMILARITY)
