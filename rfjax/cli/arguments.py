"""The command line: the parser made of the table of verbs, which knows what was misspelt, and what verbs share."""

from __future__ import annotations

import argparse
import difflib
import itertools
import re

from rfjax.cli.verbs import MOMENTS, VERBS
from rfjax.errors import ConfigError

OVERRIDE = re.compile(r"--config\.([A-Za-z0-9_.]+)(?:=(.*))?", re.DOTALL)
OVERRIDE_HELP = "any field of the config can be overridden: --config.model.depth=3 --config.train.steps=500"


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without `--config.KEY=VALUE` (or `--config.KEY VALUE`), and those as a mapping."""
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
        overrides[match[1]] = value
    return rest, overrides


def add_checkpoint(parser) -> None:
    """The options of verbs that read a checkpoint of a run."""
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default: ema")


def _add_processes(parser):
    group = parser.add_argument_group(
        "many processes",
        "the same command in every process; under SLURM (srun), on Kubernetes and on TPUs nothing need be given",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is to listen")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0 to N-1")
    group.add_argument(
        "--lost-after",
        type=int,
        default=60,
        metavar="SECONDS",
        help="a process not heard of for so long is lost, and ends the job (default 60)",
    )


class _VerbParser(argparse.ArgumentParser):
    """A parser that knows the options it was given."""

    @property
    def options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]  # those of groups, too

    def check_options(self, words: list[str]) -> None:
        """Raises `ConfigError` with the nearest option for one that is unknown.

        argparse names no other, and where a required option is the misspelt one it asks for that.
        """
        for word in itertools.takewhile(lambda word: word != "--", words):
            option = word.split("=")[0]
            if option.startswith("--") and option not in self.options:
                start = option.split(".")[0]  # of a field of the config
                near = difflib.get_close_matches(start, self.options if start == option else ["--config"], 1)
                hint = (
                    f"did you mean {option.replace(start, near[0], 1)}?" if near else f"{self.prog} --help lists them"
                )
                raise ConfigError(f"{self.prog} has no option {option}; {hint}")


def parsers(verb: str | None) -> tuple[argparse.ArgumentParser, dict[str, _VerbParser]]:
    """The parser of the command line, and by name those of the verbs; of these, `verb`'s alone is whole."""
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
        epilog = OVERRIDE_HELP if row.overridable else None
        sub = each.add_parser(name, description=description, epilog=epilog, allow_abbrev=False)
        if name == verb:  # the others' modules need not be imported
            row.load().add_arguments(sub)
            if row.many_processes:
                _add_processes(sub)
    return parser, each.choices


def _help() -> str:
    """What `rfjax --help` says: the verbs, by the moment at which a user wants them."""
    lines = ["Scaling studies of rectified-flow text-to-image transformers."]
    for moment, (title, more) in MOMENTS.items():
        rows = {verb.name: verb.help for verb in VERBS.values() if verb.moment == moment} | more
        lines += ["", title, *(f"  {name:<17} {text}" for name, text in rows.items())]
    return "\n".join(lines)
