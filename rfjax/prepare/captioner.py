"""Writes captions with a model from a folder that transformers loads as `AutoModelForImageTextToText`.

Nothing is downloaded, weights must be safetensors, and code in the folder is not run. PyTorch and transformers are
imported only when a model is loaded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rfjax.data.prepared.model_folders import find_model, identity
from rfjax.data.prepared.place import Place
from rfjax.data.prepared.text_encoders import SAFE
from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.captions import clean, texts
from rfjax.prepare.libraries import require
from rfjax.prepare.options import check_range

# For these types of model the prompt is the caption's beginning. For all others it is an instruction.
CONTINUED = ("blip", "git")
READ = {".json", ".jinja", ".model", ".txt"}  # files besides the weights that may influence a caption


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How captions are written. For each image and prompt the model writes `captions` captions: samples if
    `temperature` is above 0, else the best of a beam search."""

    prompts: tuple[str, ...] = ()
    captions: int = 1
    beams: int = 1
    temperature: float = 0.0  # 0: no sampling, but the likeliest token or a beam search
    max_tokens: int = 77

    def __post_init__(self):
        check_range(self, ("captions", "beams", "max_tokens"), 1)
        check_range(self, ("temperature",), 0)
        if self.temperature and self.beams > 1:
            both = f"--temperature {self.temperature:g} draws captions and --beams {self.beams} searches for them"
            raise ConfigError(f"{both}; give one of the two")
        if not self.temperature and self.captions > max(self.beams, 1):
            ways = f"--beams {self.captions} to search for the best, --temperature 1 to draw them, or several --prompt"
            raise ConfigError(f"--captions is {self.captions}, and only one caption is the likeliest: add {ways}")


@dataclass(frozen=True)
class Captioner:
    """A loaded model. `facts` identify it by its class and the hashes of all files that influence its captions."""

    facts: dict
    _write: Callable

    def captions(self, images: Sequence[tuple[Image.Image, ...]], seed: int) -> list[tuple[str, ...]]:
        """Returns a tuple of captions for each item of `images`. An item is one RGB image of any size, or several
        frames of a clip. Its tuple is empty if the model wrote nothing.

        `seed` matters only if a temperature was given: it decides the samples.
        """
        return self._write(list(images), seed)


def load(
    folder: str | Path,
    writing: Writing,
    *,
    pictures: int = 1,
    compute_dtype: str = "float32",
    device: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Captioner:
    """Loads a folder's model, which will be shown `pictures` images for each caption.

    Raises `ConfigError` if the model is missing, incomplete or of another kind, if it needs a prompt and `writing` has
    none, and if `pictures` is above 1 and the model takes only one image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        remedy = "fetch one, as with hf download Salesforce/blip-image-captioning-base --local-dir DIR"
        raise ConfigError(f"no folder of a model at {folder}; {remedy}")
    known = find_model(folder, ".", "")
    need = "writing captions needs PyTorch and transformers"
    torch, transformers = require("torch", need), require("transformers", need)
    transformers.utils.logging.set_verbosity_error()  # no warning about generation_config at every batch
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    place = Place(torch, device, compute_dtype)
    say(f"loading {known.model} of {folder} on {place.device}, in {compute_dtype}")
    processor = _processor(transformers, folder)
    model = place.model(transformers.AutoModelForImageTextToText, folder, dtype=place.dtype, **SAFE)
    if not writing.prompts and processor.chat_template:
        remedy = "give one, as --prompt 'Describe this image in one sentence.'"
        raise ConfigError(f"{type(model).__name__} in {folder} answers instructions: {remedy}")
    if pictures > 1 and not processor.chat_template:
        lack = f"{type(model).__name__} in {folder} has no chat template, so it sees one picture"
        raise ConfigError(f"--shown-frames is {pictures}, and {lack}; leave it out, or give another model")
    say("hashing its files")
    read = [(path, path.relative_to(folder).parts) for path in sorted(folder.rglob("*")) if path.suffix in READ]
    files = [path for path, parts in read if not any(part.startswith(".") for part in parts)]
    facts = identity(type(model).__name__, folder, [*files, *known.weights])
    return Captioner(facts, _writer(model, processor, writing, place))


@dataclass(frozen=True)
class _Pair:
    """An image processor and a tokenizer, for a folder without a processor, such as a VisionEncoderDecoderModel's."""

    images: Callable
    tokenizer: object
    chat_template: None = None

    def __call__(self, *, images, text=None, **options):
        found = self.images(images=images, return_tensors="pt")
        if text is not None:
            found["decoder_input_ids"] = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        return found

    def post_process_image_text_to_text(self, ids, **options):
        return self.tokenizer.batch_decode(ids, **options)


def _processor(transformers, folder):
    safe = {"local_files_only": True, **SAFE}
    try:
        found = transformers.AutoProcessor.from_pretrained(folder, **safe)
        if hasattr(found, "image_processor") and hasattr(found, "tokenizer"):
            return found
        images = transformers.AutoImageProcessor.from_pretrained(folder, **safe)
        return _Pair(images, transformers.AutoTokenizer.from_pretrained(folder, **safe))
    except Exception as error:  # of many kinds; also if a library is missing
        lack = f"{folder} has no processor of images and text that can be loaded: {error}"
        raise ConfigError(f"{lack}; fetch the model whole, and what it names") from None


def _inputs(processor, kind, images, prompt):
    """Returns the model's inputs for items (tuples of images) with a prompt; `prompt` None means no prompt."""
    if processor.chat_template and prompt is not None:
        text = {"type": "text", "text": prompt}
        seen = [[{"type": "image", "image": image} for image in item] for item in images]
        chats = [[{"role": "user", "content": [*item, text]}] for item in seen]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return processor.apply_chat_template(chats, **options, processor_kwargs={"padding": True})
    images = [image for (image,) in images]
    if prompt is None:
        return processor(images=images, return_tensors="pt")
    found = processor(images=images, text=[prompt] * len(images), padding=True, return_tensors="pt")
    if kind == "git":  # GIT's tokenizer ends the prompt with an end token; BLIP's model removes such a token itself
        for name in ("input_ids", "attention_mask"):
            found[name] = found[name][:, :-1]
    return found


def _writer(model, processor, writing, place):
    kind = model.config.model_type
    if not model.config.is_encoder_decoder:
        processor.tokenizer.padding_side = "left"  # the caption follows the prompt
    options = {"max_new_tokens": writing.max_tokens, "num_return_sequences": writing.captions}
    options |= {"num_beams": writing.beams, "do_sample": bool(writing.temperature)}
    if writing.temperature:
        options["temperature"] = writing.temperature
    # BERT's tokenizer always returns token_type_ids, even for a model that does not take them.
    typed = "token_type_ids" in inspect.signature(model.forward).parameters

    def generate(images, prompt):
        inputs = _inputs(processor, kind, images, prompt).to(place.device, place.dtype)
        if not typed:
            inputs.pop("token_type_ids", None)
        ids = model.generate(**inputs, **options)
        read = inputs.get("input_ids")
        if read is not None and kind not in CONTINUED:
            read = read.repeat_interleave(writing.captions, 0)
            if ids.shape[1] >= read.shape[1] and bool((ids[:, : read.shape[1]] == read).all()):
                ids = ids[:, read.shape[1] :]
        written = processor.post_process_image_text_to_text(ids, skip_special_tokens=True)
        if kind in CONTINUED and prompt:  # the prompt alone, with nothing added, is no caption
            written = ["" if clean(text).lower() == clean(prompt).lower() else text for text in written]
        return written

    def write(images, seed):
        found = [[] for _ in images]
        with place.torch.inference_mode(), place.torch.random.fork_rng(enabled=bool(writing.temperature)):
            if writing.temperature:
                place.torch.manual_seed(seed)
            for prompt in writing.prompts or (None,):
                try:
                    written = generate(images, prompt)
                except (ValueError, TypeError, KeyError, IndexError) as error:
                    failed = f"{type(model).__name__} wrote no caption for {len(images)} images"
                    why = f"{type(error).__name__}: {error}"
                    raise RfjaxError(f"{failed} under --prompt {prompt!r}: {why}; give another --prompt") from error
                for row, caption in enumerate(written):
                    found[row // writing.captions].append(caption)
        return [texts(row) for row in found]

    return write
