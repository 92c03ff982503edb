"""The command `rfjax`, with a verb for each job. The verbs' modules do the work; JAX is imported if a verb needs it."""

from __future__ import annotations

import contextlib
import functools
import sys

from rfjax.cli.arguments import check_words, parsers, split_overrides
from rfjax.cli.environment import check_devices, import_jax, prepare_process
from rfjax.cli.processes import exit_status_of, exit_when_terminated, keep_programs, run_as_job
from rfjax.cli.verbs import VERBS
from rfjax.console import make_unfailing, quiet_background
from rfjax.errors import ConfigError, RfjaxError, disk_trouble

__all__ = ["VERBS", "main", "split_overrides"]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv`, or the shell's if None. Returns the exit status (`rfjax.errors` lists them)."""
    from_shell = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if from_shell:
        make_unfailing()
        quiet_background()
    try:
        check_words(argv)
        rest, overrides = split_overrides(argv)
        name = next((word for word in rest if not word.startswith("-")), None)
        parser, each = parsers(name)
        if name in each:
            each[name].check_options(rest)
        args = parser.parse_args(rest)
        each[args.verb].check_values(args)
        verb = VERBS[args.verb]
        if overrides and not verb.overridable:
            raise ConfigError(f"rfjax {verb.name} reads no config; leave out --config.{next(iter(overrides))}")
        if verb.computes and from_shell:
            prepare_process(verb.uses_device, not getattr(args, "no_xla_flags", False))
        if verb.computes:
            import_jax()
        run = functools.partial(verb.load().run, args, overrides)
        if verb.many_processes:
            return run_as_job(args, run, from_shell, resumes=verb.resumes)
        if verb.uses_device:
            check_devices()
            keep_programs(args.compilation_cache)
        with exit_when_terminated() if verb.tidies else contextlib.nullcontext():
            return run()
    except (RfjaxError, KeyboardInterrupt, BrokenPipeError) as error:
        return exit_status_of(error)
    except OSError as error:
        if disk_trouble(error) is None:
            raise
        return exit_status_of(error)
