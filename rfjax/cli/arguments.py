"""The parser of the command line, made from the table of verbs, and the options that verbs share."""

from __future__ import annotations

import argparse
import difflib
import itertools
import re

from rfjax.cli.verbs import MOMENTS, VERBS
from rfjax.errors import ConfigError
from rfjax.inputs.paths import as_path, as_text
from rfjax.option_limits import check_option
from rfjax.weight_names import parse_weights

UNSET = "(is a shell variable unset?)"
MAY_BE_EMPTY = ("negative",)  # the empty text is a caption too
OVERRIDE = re.compile(r"--config\.([A-Za-z0-9_.]+)(?:=(.*))?", re.DOTALL)
OVERRIDE_HELP = "any field of the config can be overridden: --config.model.depth=3 --config.train.steps=500"


def check_words(argv: list[str]) -> None:
    """Raises `ConfigError` for a word that is not UTF-8 or has a zero byte, and so cannot be stored or printed."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            remedy = "rename the file, or make a link to it with a name in UTF-8"
            raise ConfigError(f"the argument {ascii(word)} is no UTF-8; {remedy}") from None
        if "\0" in word:
            raise ConfigError(f"the argument {word!r} holds a zero byte; leave it out")


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Splits off `--config.KEY=VALUE` (or `--config.KEY VALUE`): returns the other arguments and {KEY: VALUE}."""
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        match = OVERRIDE.fullmatch(word)
        if not match:
            rest.append(word)
            continue
        value = match[2] if match[2] is not None else next(words, None)
        if value is None:
            raise ConfigError(f"{word} has no value; write {word}=VALUE")
        if not value.strip():
            given = f"--config.{match[1]} is empty"
            raise ConfigError(f"{given}; give a value, as () for an empty list, or leave it out {UNSET}")
        overrides[match[1]] = value
    return rest, overrides


def add_checkpoint(parser) -> None:
    """Adds the arguments of every verb that reads a run's checkpoint: the run, its step, its weights."""
    parser.add_argument("run", metavar="RUN", type=as_path("RUN"), help="a run's folder")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    weights = "default: ema; power-W is the power-function average of width W (docs/rates.md)"
    parser.add_argument("--weights", metavar="ema|raw|power-W", type=parse_weights, default="ema", help=weights)


def _add_processes(parser):
    about = "give every process the same command; under SLURM (srun), on Kubernetes and on TPUs nothing else is needed"
    group = parser.add_argument_group("many processes", about)
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the address at which process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="the number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="the number of this process, from 0 to N-1")
    lost = "silence after which a process is lost and the job ends (default 60)"
    group.add_argument("--lost-after", type=int, default=60, metavar="SECONDS", help=lost)


def _add_compiling(parser):
    about = "on GPUs and TPUs rfjax sets flags of the compiler and keeps what it compiles for the next process"
    group = parser.add_argument_group("compiling", about)
    flags = "set no flags of XLA; those that you set yourself always win"
    group.add_argument("--no-xla-flags", action="store_true", help=flags)
    keep = "keep compiled programs here, on CPUs too; off: keep none (default: the user's cache folder, not on CPUs)"
    of_type = as_text("--compilation-cache")
    group.add_argument("--compilation-cache", metavar="DIR|off", type=of_type, help=keep)


class _VerbParser(argparse.ArgumentParser):
    """The parser of one verb. For a misspelt option it suggests the verb's option with the nearest name."""

    @property
    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]  # groups included

    def check_options(self, words: list[str]) -> None:
        """Raises `ConfigError` for an unknown option, with the nearest known one.

        argparse suggests no option, and says of a misspelt required option only that it is missing.
        """
        for word in itertools.takewhile(lambda word: word != "--", words):
            option = word.split("=")[0]
            if option.startswith("--") and option not in self.options:
                start = option.split(".")[0]  # --config of --config.seed
                near = difflib.get_close_matches(start, self.options if start == option else ["--config"], 1)
                hint = f"did you mean {near[0]}{option[len(start) :]}?" if near else f"{self.prog} --help lists them"
                raise ConfigError(f"{self.prog} has no option {option}; {hint}")

    def check_values(self, args: argparse.Namespace) -> None:
        """Raises `ConfigError` for an empty value, and for a number that `option_limits` does not allow.

        An empty value is an error because a verb could take it for an option left out. The options in `MAY_BE_EMPTY`
        are exempt.
        """
        for action in self._actions:
            given = getattr(args, action.dest, None)
            texts = given if isinstance(given, list) else [given]
            for number in texts if action.type in (int, float) else ():
                if number is not None:
                    check_option(args.verb, action.dest, number)
            empty = any(isinstance(text, str) and not text.strip() for text in texts)
            if empty and action.dest not in MAY_BE_EMPTY:
                name = action.option_strings[0] if action.option_strings else action.metavar
                raise ConfigError(f"{name} is empty; give a value, or leave it out {UNSET}")


def parsers(verb: str | None) -> tuple[argparse.ArgumentParser, dict[str, _VerbParser]]:
    """Returns (the command line's parser, {name: parser} of all verbs). Only the parser of `verb` gets its arguments;
    if `verb` is None, none does."""
    parser = argparse.ArgumentParser(
        prog="rfjax",
        usage="rfjax VERB [OPTIONS]    (rfjax VERB --help lists a verb's options)",
        description=_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    each = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", prog="rfjax", parser_class=_VerbParser, help=argparse.SUPPRESS
    )
    for name, row in VERBS.items():
        description = row.help[0].upper() + row.help[1:] + "."
        module = row.load() if name == verb else None  # no other verb's module is imported
        epilog = getattr(module, "OVERRIDES", OVERRIDE_HELP) if row.overridable else None
        sub = each.add_parser(name, description=description, epilog=epilog, allow_abbrev=False)
        if module:
            module.add_arguments(sub)
            if row.uses_device:
                _add_compiling(sub)
            if row.many_processes:
                _add_processes(sub)
    return parser, each.choices


def _help() -> str:
    """Returns the text of `rfjax --help`: the verbs, grouped by the moment at which a user wants them."""
    lines = ["Scaling studies of rectified-flow text-to-image transformers."]
    for moment, (title, more) in MOMENTS.items():
        rows = {verb.name: verb.help for verb in VERBS.values() if verb.moment == moment} | more
        lines += ["", title, *(f"  {name:<17} {text}" for name, text in rows.items())]
    return "\n".join(lines)
