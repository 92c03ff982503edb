"""A model that writes captions: a folder that transformers loads as `AutoModelForImageTextToText`.

Nothing is downloaded, weights are safetensors, and code that lies in the folder is not run. PyTorch and
transformers are imported when the model is loaded.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rfjax.data.prepared import frozen
from rfjax.errors import ConfigError, RfjaxError
from rfjax.prepare.captions import clean, texts

# Model types to which a prompt is the beginning of the caption, and so a part of it; to all others it is an
# instruction.
CONTINUED = ("blip", "git")
READ = {".json", ".jinja", ".model", ".txt"}  # beside the weights, what of a folder may decide a caption


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How captions are written. Of each prompt come `captions` of them: the best of so many beams, or as many draws."""

    prompts: tuple[str, ...] = ()
    captions: int = 1
    beams: int = 1
    temperature: float = 0.0  # 0: the likeliest token each time
    max_tokens: int = 77

    def __post_init__(self):
        for name in ("captions", "beams", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"--temperature is {self.temperature:g}; it must be at least 0")
        if self.temperature and self.beams > 1:
            raise ConfigError(
                f"--temperature {self.temperature:g} draws captions and --beams {self.beams} searches for the "
                "likeliest; give one of the two"
            )
        if not self.temperature and self.captions > max(self.beams, 1):
            raise ConfigError(
                f"--captions is {self.captions}, and the likeliest caption is one: add --beams {self.captions} for "
                "the best of "
                "a search, --temperature 1 to draw them, or several --prompt"
            )


@dataclass(frozen=True)
class Captioner:
    """A loaded model; `facts` says which, with a hash of every file that decides what it writes."""

    facts: dict
    _write: Callable

    def captions(self, images: Sequence, seed: int) -> list[tuple[str, ...]]:
        """The captions of each RGB image, a PIL.Image of any size; none where the model wrote nothing.

        `seed` decides what is drawn where a temperature was given, and nothing else.
        """
        return self._write(list(images), seed)


def load(
    folder: str | Path,
    writing: Writing,
    *,
    compute_dtype: str = "float32",
    device: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Captioner:
    """The model of a folder. `ConfigError` where it is not there, not whole, not of a known kind, or needs a prompt."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(
            f"no folder of a model at {folder}; fetch one, as `hf download Salesforce/blip-image-captioning-base "
            "--local-dir DIR` does"
        )
    known = frozen.find_model(folder, ".", "")
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"writing captions needs PyTorch and transformers ({error}): pip install 'rfjax[prepare]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()  # what a generation_config has beside is told at every batch
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    place = frozen.Place(torch, device, compute_dtype)
    say(f"loading {known.model} of {folder} on {place.device}, in {compute_dtype}")
    processor = _processor(transformers, folder)
    model = place.model(transformers.AutoModelForImageTextToText, folder, dtype=place.dtype)
    if not writing.prompts and processor.chat_template:
        raise ConfigError(
            f"{type(model).__name__} in {folder} answers instructions: give one, as --prompt 'Describe this image in "
            "one sentence.'"
        )
    say("hashing its files")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in READ and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    facts = frozen.identity(type(model).__name__, folder, [*files, *(path for path in known.weights)])
    return Captioner(facts, _writer(model, processor, writing, place))


@dataclass(frozen=True)
class _Pair:
    """An image processor and a tokenizer of a folder that names no processor, as a VisionEncoderDecoderModel's."""

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
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        found = transformers.AutoProcessor.from_pretrained(folder, **safe)
        if hasattr(found, "image_processor") and hasattr(found, "tokenizer"):
            return found
        images, tokenizer = (
            getattr(transformers, name).from_pretrained(folder, **safe)
            for name in ("AutoImageProcessor", "AutoTokenizer")
        )
    except Exception as error:  # of many kinds, and libraries that a processor lacks
        raise ConfigError(f"{folder} has no processor of images and text that can be loaded: {error}") from None
    return _Pair(images, tokenizer)


def _inputs(processor, kind, images, prompt):
    """The model's inputs of images under one prompt (None: none)."""
    if processor.chat_template and prompt is not None:
        said = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image in images
        ]
        return processor.apply_chat_template(
            said,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
    if prompt is None:
        return processor(images=images, return_tensors="pt")
    found = processor(images=images, text=[prompt] * len(images), padding=True, return_tensors="pt")
    if kind == "git":  # its tokenizer closes the text; blip takes that back itself
        for name in ("input_ids", "attention_mask"):
            found[name] = found[name][:, :-1]
    return found


def _writer(model, processor, writing, place):
    kind = model.config.model_type
    if not model.config.is_encoder_decoder:
        processor.tokenizer.padding_side = "left"  # what is written follows what is read
    options = {
        "max_new_tokens": writing.max_tokens,
        "num_return_sequences": writing.captions,
        "num_beams": writing.beams,
        "do_sample": False,
    }
    if writing.temperature:
        options |= {"do_sample": True, "temperature": writing.temperature}

    typed = "token_type_ids" in inspect.signature(model.forward).parameters  # BERT's tokenizer gives them to whomever

    def under(images, prompt):
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
        # A beginning to which nothing was added is no caption.
        return [
            "" if kind in CONTINUED and prompt and clean(one).lower() == clean(prompt).lower() else one
            for one in written
        ]

    def write(images, seed):
        found = [[] for _ in images]
        with place.torch.inference_mode(), place.torch.random.fork_rng(enabled=bool(writing.temperature)):
            if writing.temperature:
                place.torch.manual_seed(seed)
            for prompt in writing.prompts or (None,):
                try:
                    written = under(images, prompt)
                except (ValueError, TypeError, KeyError, IndexError) as error:
                    raise RfjaxError(
                        f"{type(model).__name__} wrote no caption for {len(images)} images under --prompt "
                        f"{prompt!r}: {type(error).__name__}: {error}"
                    ) from error
                for row, caption in enumerate(written):
                    found[row // writing.captions].append(caption)
        return [texts(row) for row in found]

    return write
