"""The kinds of frozen text encoders, as a table: the classes of transformers, and which features of each are stored.

SD3's three encoders have folders and names of their own. Any other encoder is in `text_encoder_NAME`, and the class
that its config.json names decides its kind. CLIP and T5 are run as in diffusers' StableDiffusion3Pipeline: padded,
without an attention mask. All other kinds are run with the mask, and their features are zero where there is no token.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rfjax.errors import ConfigError

SAFE = {"trust_remote_code": False}  # for everything that transformers loads: no code from a folder is run
PREFIX = "text_encoder_"
POOLED = ("mean", "first", "last", "none")
CHAT = "chat"  # a template that means the tokenizer's own chat template, with the caption as the user's message


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which of an encoder's features are stored. CLIP and T5 have no such settings."""

    tokens: int = 77
    layer: int = -1  # of the hidden states; -1 is the last, 0 the embeddings
    template: str = "{}"  # the text that the encoder sees, {} is the caption; or `CHAT`
    skip: int = 0  # tokens left out at the beginning, such as those of the template
    padding: str = "right"
    pooled: str = "mean"  # the mean over tokens, the first token, the last token, or none


@dataclass(frozen=True)
class Slot:
    """Where a text encoder lies in a folder of models, and its kind. `kind` is "" if the class of the model decides
    it."""

    kind: str
    part: str
    tokenizer: str  # the folder of the tokenizer; may be the model's own


# SD3's encoders, in the order in which a corpus has them
SLOTS = {
    "clip_l": Slot("clip", "text_encoder", "tokenizer"),
    "clip_g": Slot("clip", "text_encoder_2", "tokenizer_2"),
    "t5": Slot("t5", "text_encoder_3", "tokenizer_3"),
}


def slots_of(folder: Path) -> dict[str, Slot]:
    """The text encoders whose folders are there, by name."""
    found = {name: slot for name, slot in SLOTS.items() if (folder / slot.part).is_dir()}
    own = {slot.part for slot in SLOTS.values()}
    for part in sorted(path.name for path in folder.glob(f"{PREFIX}*") if path.is_dir() and path.name not in own):
        found[part.removeprefix(PREFIX)] = slot_of(folder, part.removeprefix(PREFIX))
    return found


def slot_of(folder: Path, name: str) -> Slot:
    """Finds the `Slot` of a text encoder by its name. The tokenizer of `text_encoder_NAME` is in `tokenizer_NAME`, or
    in the model's own folder."""
    if name in SLOTS:
        return SLOTS[name]
    apart = f"tokenizer_{name}"
    return Slot("", f"{PREFIX}{name}", apart if (folder / apart).is_dir() else f"{PREFIX}{name}")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of text encoders. `features` gives context [n, tokens, channels] and pooled [n, size] or None."""

    classes: tuple[str, ...]  # of transformers, as config.json names them
    loader: str = ""  # the class of transformers that loads the model, if it is not the class in config.json
    features: Callable  # (model, its class, ids, mask, settings) -> (context, pooled)
    tokens: Callable  # (tokenizer, settings, tokens for T5) -> tokens to which a caption is padded or cut
    sizes: Callable  # (model, its class, settings) -> (channels, pooled size)
    pooled: str = "none"  # the default of `Settings.pooled`
    settings: bool = True  # whether `Settings` apply


def _clip(model, name, ids, mask, settings):
    out = model(ids, output_hidden_states=True)
    return out.hidden_states[-2], out.text_embeds if "Projection" in name else out.pooler_output


def _clip_sizes(model, name, settings):
    config = model.config
    return config.hidden_size, config.projection_dim if "Projection" in name else config.hidden_size


def _t5(model, name, ids, mask, settings):
    return model(ids)[0], None


def _masked(model, name, ids, mask, settings):
    """Runs a text encoder on padded tokens with their mask. Returns the hidden states of a layer, zero where there is
    no token, and a vector pooled from them."""
    hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[settings.layer]
    hidden, mask = hidden[:, settings.skip :], mask[:, settings.skip :]
    context = hidden.masked_fill(mask[..., None] == 0, 0.0)
    if settings.pooled == "none":
        return context, None
    if settings.pooled == "mean":
        return context, context.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    places = mask.cumsum(1) * mask
    wanted = places == (1 if settings.pooled == "first" else places.amax(1, keepdim=True).clamp(min=1))
    return context, (context * wanted[..., None]).sum(1)


def _masked_sizes(model, name, settings):
    return model.config.hidden_size, 0 if settings.pooled == "none" else model.config.hidden_size


KINDS = {
    "clip": Kind(
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
        features=_clip,
        tokens=lambda tokenizer, settings, t5_tokens: tokenizer.model_max_length,
        sizes=_clip_sizes,
        settings=False,
    ),
    "t5": Kind(
        classes=("T5EncoderModel",),
        features=_t5,
        tokens=lambda tokenizer, settings, t5_tokens: t5_tokens,
        sizes=lambda model, name, settings: (model.config.d_model, 0),
        settings=False,
    ),
    "bert": Kind(  # sentence encoders such as all-MiniLM-L6-v2
        classes=("BertModel", "MPNetModel", "RobertaModel", "XLMRobertaModel"),
        features=_masked,
        tokens=lambda tokenizer, settings, t5_tokens: settings.tokens,
        sizes=_masked_sizes,
        pooled="mean",
    ),
    "decoder": Kind(  # language models
        classes=(
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
            "GemmaForCausalLM",
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
        ),
        loader="AutoModel",
        features=_masked,
        tokens=lambda tokenizer, settings, t5_tokens: settings.tokens,
        sizes=_masked_sizes,
        pooled="last",
    ),
}
SIDE_BY_SIDE = "clip"  # encoders of this kind share the first tokens of the context; other encoders' tokens follow


def kind_of(folder: Path, name: str, slot: Slot, model: str) -> str:
    """Returns the kind of a text encoder: its slot's kind, or else the kind that has the encoder's class `model`.
    Raises `ConfigError` for a class that does not fit the slot's kind, or that no kind has."""
    if slot.kind:
        if model not in KINDS[slot.kind].classes:
            must = " or ".join(KINDS[slot.kind].classes)
            remedy = f"an encoder of another kind goes into a folder {PREFIX}NAME"
            raise ConfigError(f"{folder / slot.part} is a {model}; {name} must be a {must}: {remedy}")
        return slot.kind
    for kind, row in KINDS.items():
        if model in row.classes:
            return kind
    known = "; ".join(f"{kind} ({', '.join(row.classes)})" for kind, row in KINDS.items())
    raise ConfigError(f"{folder / slot.part} is a {model}, which rfjax does not know; known are {known}")


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, int | str]]:
    """Reads settings `NAME.FIELD=VALUE` to {name: {field: value}}. Raises `ConfigError` for a text of another form, for
    an encoder of SD3, which has no settings, for an unknown field, and for a value of the wrong type."""
    found: dict[str, dict[str, int | str]] = {}
    fields = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    for text in texts:
        where, equals, value = text.partition("=")
        name, dot, field = where.partition(".")
        if not (name and dot and equals):
            raise ConfigError(f"--text-setting is {text!r}; it must be NAME.FIELD=VALUE, such as minilm.tokens=32")
        if name in SLOTS:
            raise ConfigError(
                f"--text-setting {text}: {name} runs as in SD3's pipeline and takes no settings; leave it out"
            )
        if field not in fields:
            near = difflib.get_close_matches(field, fields, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--text-setting {text}: {field!r} must be one of {', '.join(fields)}{hint}")
        try:
            found.setdefault(name, {})[field] = fields[field](value)
        except ValueError:
            raise ConfigError(f"--text-setting {text}: {field} is {value!r}; it must be a whole number") from None
    return found


def settings_of(name: str, kind: str, given: Mapping[str, int | str]) -> Settings:
    """Converts the settings that a user gave for a text encoder to a `Settings`. Raises `ConfigError` for a value that
    a setting cannot have."""
    found = Settings(**{"pooled": KINDS[kind].pooled} | dict(given))
    wrong = [
        ("tokens", found.tokens, "at least 1", found.tokens >= 1),
        ("skip", found.skip, "at least 0 and below tokens", 0 <= found.skip < found.tokens),
        ("template", found.template, f"{CHAT}, or a text with one {{}} for the caption", _has_place(found.template)),
        ("padding", found.padding, "left or right", found.padding in ("left", "right")),
        ("pooled", found.pooled, " or ".join(POOLED), found.pooled in POOLED),
    ]
    for field, value, must, holds in wrong:
        if not holds:
            raise ConfigError(f"--text-setting {name}.{field} is {value!r}; it must be {must}")
    return found


def _has_place(template: str) -> bool:
    return template == CHAT or template.count("{}") == 1


def written_out(template: str, tokenizer, where: Path) -> str:
    """Returns the template as a text with one {} for the caption.

    If the tokenizer adds its beginning-of-text token itself, that token is removed from a chat template's text.
    Raises `ConfigError` for a tokenizer without a chat template, or with one that has no single place for the caption.
    """
    if template != CHAT:
        return template
    asked = f"--text-setting asks for the template {CHAT}, and the tokenizer {where}"
    if not tokenizer.chat_template:
        raise ConfigError(f"{asked} has no chat template; write the template out, with {{}} for the caption")
    message = [{"role": "user", "content": "{}"}]
    try:
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template of the folder raises
        raise ConfigError(f"{asked} has one that fails: {error}; write the template out") from None
    if text.count("{}") != 1:
        raise ConfigError(f"{asked} makes {text[:80]!r} of one message; write the template out")
    first = tokenizer.bos_token or ""
    adds = bool(first) and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(first) if adds else text


def load_text_encoder(folder: Path, name: str, slot: Slot, kind: str, model_class: str, place, **given):
    """Loads the encoder `name` of a folder, of the class `model_class`, on a `place.Place`.

    `given` has `settings`, a mapping of `Settings`' fields, and `t5_tokens`. Returns a function from captions to
    (context, pooled), a function from captions to token counts, and the sizes (tokens, channels, pooled size).
    """
    import transformers

    row, settings = KINDS[kind], settings_of(name, kind, given["settings"])
    where = folder / slot.part
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / slot.tokenizer, local_files_only=True, **SAFE)
    except Exception as error:
        raise ConfigError(
            f"{folder / slot.tokenizer} cannot be loaded as a tokenizer: {error}; fetch it again"
        ) from None
    model = place.model(getattr(transformers, row.loader or model_class), where, dtype=place.dtype, **SAFE)
    tokens = row.tokens(tokenizer, settings, given["t5_tokens"])
    _check_fit(where, tokenizer, model, tokens, settings if row.settings else None)
    if row.settings:
        tokenizer.padding_side = settings.padding
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    template = written_out(settings.template, tokenizer, folder / slot.tokenizer)

    def wrapped(captions):
        return [template.replace("{}", caption) for caption in captions]

    def features(captions):
        padded = tokenizer(
            wrapped(captions), padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
        )
        ids, mask = (padded[key].to(place.device) for key in ("input_ids", "attention_mask"))
        with place.torch.inference_mode():
            found = row.features(model, model_class, ids, mask, settings)
        return tuple(None if each is None else each.float().cpu().numpy() for each in found)

    def counts(captions):
        return [
            len(ids) - settings.skip for ids in tokenizer(wrapped(captions), truncation=False, verbose=False).input_ids
        ]

    return features, counts, (tokens - settings.skip, *row.sizes(model, model_class, settings))


def _check_fit(where, tokenizer, model, tokens, settings):
    """Raises `ConfigError` for a model that cannot take what the tokenizer gives, and for a layer that the model
    lacks."""
    limit = getattr(model.config, "max_position_embeddings", tokens)
    for what, count in (("model_max_length of its tokenizer", tokens), ("max_position_embeddings", limit)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{where}: {what} is {count!r}, not a number of tokens; fetch the folder again")
    if tokens > limit:
        if settings is not None:
            raise ConfigError(f"--text-setting asks for {tokens} tokens, and {where} takes at most {limit}; lower it")
        given = f"the tokenizer of {where} gives {tokens} tokens, and the model has {limit} positions"
        raise ConfigError(f"{given}; fetch the tokenizer of this model")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        given = f"the tokenizer of {where} has {len(tokenizer):,} tokens, and the model knows {rows:,}"
        raise ConfigError(f"{given}; fetch the tokenizer of this model")
    layers = getattr(model.config, "num_hidden_layers", None)
    if settings is not None and not -layers - 1 <= settings.layer <= layers:
        given = f"--text-setting has the layer {settings.layer}, and {where} has {layers} layers"
        raise ConfigError(f"{given}: give one from 0 (the embeddings) to {layers}, or from -{layers + 1} to -1")
