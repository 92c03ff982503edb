"""A vision-language model of transformers, from a local folder, that answers questions about images.

The model reads an image and a question, and writes no text: an answer's probability is that of its first token among
all tokens that the model could write first. With an answer of several spellings, the probabilities of their distinct
first tokens are added.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from jaxtyping import Float64
from PIL import Image
from transformers.models.auto import modeling_auto

from rfjax.data.prepared.model_folders import find_model
from rfjax.errors import ConfigError
from rfjax.scorers import pretrained
from rfjax.scorers.files import content_hash

KINDS = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES  # type in config.json -> class


@dataclass(frozen=True, eq=False)
class VisionLanguageModel:
    """A model on a device. `name` is the name of its folder, and `sha256` the hash of the folder's files."""

    model: torch.nn.Module
    processor: object
    device: torch.device
    name: str
    sha256: str

    @torch.inference_mode()
    def probabilities(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[Sequence[Sequence[str]]]
    ) -> list[list[float]]:
        """Returns for each pair of an image and a question a list: the probability of each of the question's answers.

        `answers[i]` are the answers to question i. An answer is a sequence of spellings; its probability is the sum of
        the probabilities of the distinct first tokens of its spellings, and 0 for an answer without spellings. Raises
        `ConfigError` if the model cannot read the question or gives numbers that are not finite, and if no spelling of
        an answer has a first token that tells something (`_first_tokens`).
        """
        try:
            inputs = self._inputs(list(images), list(questions)).to(self.device, self.model.dtype)
            if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
                inputs.pop("token_type_ids", None)  # BERT's tokenizer returns them always
            options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
            logits = self.model.generate(**inputs, **options).logits[0]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            why = pretrained.first_line(error)
            raise ConfigError(f"{self.name} cannot answer {questions[0]!r}: {why}; give another --vqa") from None
        chances: Float64[torch.Tensor, "n tokens"] = logits.double().softmax(-1)
        if not bool(chances.isfinite().all()):
            raise ConfigError(f"{self.name} gives numbers that are not finite; use --compute-dtype=float32")
        return [
            [float(row[self._first_tokens(spellings)].sum()) for spellings in each]
            for row, each in zip(chances, answers, strict=True)
        ]

    def _inputs(self, images, questions):
        if self.processor.chat_template:
            chats = [
                [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
                for image, question in zip(images, questions, strict=True)
            ]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return self.processor.apply_chat_template(chats, **options, processor_kwargs={"padding": True})
        return self.processor(images=images, text=questions, padding=True, return_tensors="pt")

    def _first_tokens(self, spellings) -> list[int]:
        """Returns the distinct first tokens of an answer's spellings, in rising order. A spelling is left out if its
        first token is unknown or only blanks, because such a token says nothing about the answer."""
        tokenizer, found = self.processor.tokenizer, []
        for spelling in spellings:
            ids = tokenizer.encode(spelling, add_special_tokens=False)
            if ids and ids[0] != tokenizer.unk_token_id and tokenizer.decode(ids[:1]).strip():
                found.append(ids[0])
        if spellings and not found:
            raise ConfigError(f"the tokenizer of {self.name} has no token for {spellings[0]!r}; give another --vqa")
        return sorted(set(found))


def load(path: str | os.PathLike, device: torch.device, dtype: str = "float32") -> VisionLanguageModel:
    """Loads a folder's model in the type `dtype`. Downloads nothing, and runs no code in the folder.

    Raises `ConfigError` for a folder without a whole model, and for a model of another kind, with a list of the kinds.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"no folder of a model at {path}; give --vqa a folder of a vision-language model")
    found = find_model(path, ".", "")
    config = pretrained.load_config(path)
    if config.model_type not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise ConfigError(f"{path} is a {found.model} ({config.model_type}); --vqa takes one of the kinds {known}")
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoProcessor.from_pretrained(path, **safe)
        processor.tokenizer.padding_side = "right" if config.is_encoder_decoder else "left"
    except Exception as error:  # of many kinds; also if a library is missing
        lack = f"{path} has no processor of images and text that can be loaded: {pretrained.first_line(error)}"
        raise ConfigError(f"{lack}; fetch the model whole, and what it names") from None
    model = pretrained.load(transformers.AutoModelForImageTextToText, path, "the model", dtype=dtype)
    return VisionLanguageModel(model.to(device), processor, device, path.absolute().name, content_hash(path))
