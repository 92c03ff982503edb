"""Reads the options of `rfjax launch` that describe the scheduler, from flags and a site file. No JAX here."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from rfjax.config_files import call, load_file
from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_mounted, as_text, mounted_text
from rfjax.launch.target import CommonOptions, Target

KINDS = {int: "a whole number", str: "text", bool: "True or False", tuple: "a list of texts"}


@dataclass(frozen=True)
class _Option:
    field: dataclasses.Field
    kind: type  # a key of KINDS
    targets: tuple[str, ...]  # the targets that take the option; empty if all do

    @property
    def flag(self) -> str:
        return "--" + self.field.name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser, targets: Mapping[str, type]) -> None:
    """Adds --site, --on and a flag for every option to the parser. The flags are grouped by the schedulers that take
    them."""
    site = "a file with get_site(), or a shipped site's name: it gives --on and the options below; flags override it"
    parser.add_argument("--site", metavar="FILE.py|NAME", type=as_text("--site"), help=site)
    parser.add_argument("--on", metavar="TARGET", help="the scheduler: " + ", ".join(targets))
    groups = {(): parser}
    for option in _options(targets).values():
        if option.targets not in groups:
            title = "with " + " or ".join(f"--on={target}" for target in option.targets)
            groups[option.targets] = parser.add_argument_group(title)
        about = option.field.metadata
        reading = {"action": argparse.BooleanOptionalAction} if option.kind is bool else {"metavar": about["metavar"]}
        reading |= {tuple: {"action": "append"}, int: {"type": int}}.get(option.kind, {})
        reading |= {"type": as_mounted(option.flag)} if about["path"] else {}
        needed = " (needed: by flag or by site)" if option.field.default is dataclasses.MISSING else ""
        groups[option.targets].add_argument(option.flag, default=None, help=about["help"] + needed, **reading)


def read_options(args: argparse.Namespace, targets: Mapping[str, type]) -> tuple[str, CommonOptions, Target]:
    """Returns the target's name, the common options, and the target with its options.

    Raises `ConfigError` for an option that is unknown, out of range or only for another target, and if neither a flag
    nor the site gives a needed option.
    """
    options = _options(targets)
    site = {} if args.site is None else _read_site(args.site, options)
    on = site.get("on") if args.on is None else args.on
    if on not in targets:
        near = difflib.get_close_matches(str(on), targets, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        given = "neither --on nor a --site says where to run" if on is None else f"--on is {on!r}"
        raise ConfigError(f"{given}; it must be one of {', '.join(targets)}{hint}")
    values: dict[type, dict] = {CommonOptions: {}, targets[on]: {}}
    for name, option in options.items():
        by_flag = getattr(args, name) is not None
        value = getattr(args, name) if by_flag else site.get(name)
        given = option.flag if by_flag else f"the field {name} of the site {args.site}"
        if option.targets and on not in option.targets:
            if value is not None:
                homes = " or ".join(option.targets)
                raise ConfigError(f"{given} is for --on={homes}, and this is --on={on}; leave it out")
        elif value is not None:
            least = option.field.metadata["least"]
            if least is not None and value < least:
                raise ConfigError(f"{given} is {value}; it must be at least {least}")
            owner = targets[on] if option.targets else CommonOptions
            values[owner][name] = tuple(value) if option.kind is tuple else value
        elif name in site or option.field.default is dataclasses.MISSING:
            where = "a site file for --site" if args.site is None else f"the site {args.site}"
            needed = f"--on={on} needs {option.flag} ({option.field.metadata['help']})"
            raise ConfigError(f"{needed}; give it, or fill the field {name} of {where}")
    return on, CommonOptions(**values[CommonOptions]), targets[on](**values[targets[on]])


def _read_site(text: str, options: Mapping[str, _Option]) -> dict[str, object]:
    """Returns the fields of a site file. A field may be None: then a flag can give it."""
    site = call(load_file(text, "site"), "get_site", text)
    site = site.to_dict() if hasattr(site, "to_dict") else site
    if not isinstance(site, dict):
        raise ConfigError(f"get_site() of {text} returned {site!r}; it must return a ConfigDict")
    for name, value in site.items():
        if name != "on" and name not in options:
            near = difflib.get_close_matches(str(name), ("on", *options), 1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are on, {', '.join(options)}"
            raise ConfigError(f"the site {text} has no field {name!r}; {hint}")
        kind = str if name == "on" else options[name].kind
        if value is not None and not _is_of_kind(value, kind):
            raise ConfigError(f"the field {name} of the site {text} is {value!r}; it must be {KINDS[kind]}")
        if any(isinstance(part, str) and not part.strip() for part in (value if kind is tuple and value else [value])):
            raise ConfigError(f"the field {name} of the site {text} is empty; fill it, or make it None")
        if value is not None and name != "on" and options[name].field.metadata["path"]:
            mounted_text(value, f"the field {name} of the site {text}")
    return site


def _is_of_kind(value: object, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _options(targets: Mapping[str, type]) -> dict[str, _Option]:
    """Returns {name: option} of all options, the common ones first."""
    found: dict[str, _Option] = {}
    for homes, owner in [((), CommonOptions), *(((name,), target) for name, target in targets.items())]:
        hints = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            before = found[field.name].targets if field.name in found else ()
            found[field.name] = _Option(field, _kind(hints[field.name]), (*before, *homes))
    return found


def _kind(annotation: object) -> type:
    """Returns the type to read an option as: int for `int | None`, tuple for `tuple[str, ...]`."""
    if typing.get_origin(annotation) is tuple:
        return tuple
    return next((part for part in typing.get_args(annotation) if part is not type(None)), annotation)
