"""`rfjax`: one command, a verb per job. Wiring only; JAX is imported when a verb needs it."""

from __future__ import annotations

import sys

from rfjax.cli.arguments import parsers, split_overrides
from rfjax.cli.environment import settle
from rfjax.cli.processes import ended, together
from rfjax.cli.verbs import VERBS
from rfjax.errors import ConfigError, RfjaxError

__all__ = ["VERBS", "main", "split_overrides"]


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status (`rfjax.errors` says which means what)."""
    from_shell = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        rest, overrides = split_overrides(argv)
        verb = next((word for word in rest if not word.startswith("-")), None)
        parser, verbs = parsers(VERBS, verb)
        if verb in verbs:
            verbs[verb].check_options(rest)
        args = parser.parse_args(rest)
        chosen = VERBS[args.verb]
        if overrides and not chosen.overridable:
            raise ConfigError(f"rfjax {args.verb} reads no config; leave out --config.{next(iter(overrides))}")
        if chosen.computes and from_shell:
            settle(argv)
        if not chosen.together:
            return chosen.act(args, overrides)
        return together(args, lambda: chosen.act(args, overrides), from_shell, resumes=chosen.resumes)
    except (RfjaxError, KeyboardInterrupt, BrokenPipeError) as error:
        return ended(error)
