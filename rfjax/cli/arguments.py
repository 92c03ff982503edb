"""The command line: every verb's arguments, and the parser that knows what was misspelt."""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rfjax.errors import ConfigError

OVERRIDE = re.compile(r"--config\.([A-Za-z0-9_.]+)(?:=(.*))?", re.DOTALL)
OVERRIDE_HELP = "any field of the config can be overridden: --config.model.depth=3 --config.train.steps=500"


class Verb(NamedTuple):
    """A row of the table of verbs."""

    text: str  # what it does
    arguments: Callable  # (parser) -> None, which adds them to it
    act: Callable  # (arguments, overrides) -> exit status
    overridable: bool = True  # takes --config.* overrides
    computes: bool = True  # with JAX
    together: bool = False  # many processes may do it as one
    resumes: bool = False  # goes on where it was told to stop


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


def study(parser):
    parser.add_argument("--config", required=True, metavar="FILE.py", help="get_config() and points()")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/<name of the study>")
    parser.add_argument("--point", metavar="ID", help="train and evaluate this point only")
    parser.add_argument("--collect", action="store_true", help="merge, fit and report what has been run; train nothing")
    parser.add_argument("--dry-run", action="store_true", help="list the points with parameters, FLOPs and state bytes")


def train(parser):
    parser.add_argument("--config", required=True, metavar="FILE.py", help="a file with get_config()")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder; the same command resumes it")
    parser.add_argument("--init", metavar="RUN@STEP", help="start a new run from this checkpoint's weights")
    parser.add_argument("--no-evaluation", action="store_true", help="leave validation and GenEval to `rfjax eval`")


def processes(parser):
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


def _checkpoint(parser):
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint (default: the newest)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default: ema")


def eval_(parser):
    _checkpoint(parser)
    parser.add_argument(
        "--sampling-steps",
        metavar="N,N,...",
        help="instead: GenEval, path length and distance at these counts of sampling steps, the most being the "
        "reference",
    )
    parser.add_argument(
        "--mlperf-levels",
        metavar="FILE",
        help="instead: MLPerf's validation loss, each validation example at the one level that this file gives it, "
        "an integer from 0 to 7 a line",
    )


def sample(parser):
    _checkpoint(parser)
    parser.add_argument("--prompt", action="append", help="a caption; may be given several times")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="instead: GenEval's metadata, or T2I-CompBench's prompts; makes a folder for `rfjax score`",
    )
    parser.add_argument(
        "--layout", choices=("geneval", "compbench"), default="geneval", help="of that folder (default geneval)"
    )
    parser.add_argument(
        "--negative", metavar="TEXT", help='encoded negative prompt, "" too (default: the null condition, zeros)'
    )
    parser.add_argument(
        "--sigmas",
        choices=("uniform", "diffusers"),
        help="the times of the steps: equal ones, or those of diffusers' FlowMatchEulerDiscreteScheduler "
        "(default: config.evaluation.sampler.sigmas)",
    )
    parser.add_argument(
        "--encoders",
        metavar="NAMES",
        help="of a run on a prepared corpus: encode prompts with these alone, as clip_l,clip_g for want of T5; the "
        "others are zero",
    )
    parser.add_argument(
        "--latent-size",
        metavar="HxW",
        help="of the images, in latent pixels, as 40x24; any that the positions reach (default: what was trained on, "
        "of aspect buckets the first)",
    )
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="images per prompt (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="a PNG with one row per prompt (default samples.png), or that folder (default: samples)",
    )


def export(parser):
    _checkpoint(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("diffusers", "sd3", "plain"),
        help="diffusers: a folder for SD3Transformer2DModel; sd3: the single file of SD3 and SD3.5; "
        "plain: our names, and a PyTorch module that reads them, for every MM-DiT",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="a folder, or for sd3 a file .safetensors")
    parser.add_argument(
        "--pipeline",
        action="store_true",
        help="of a run on a prepared corpus, with --format diffusers: a whole StableDiffusion3Pipeline, autoencoder, "
        "text encoders and tokenizers included",
    )
    parser.add_argument(
        "--models",
        default="",
        metavar="DIR",
        help="with --pipeline: the frozen models (default: where the corpus was prepared with them)",
    )
    parser.add_argument("--dtype", choices=("f32", "bf16", "f16"), default="f32", help="default: f32, as trained")
    parser.add_argument(
        "--max-shard-gb", type=float, default=10.0, metavar="GB", help="split files at this size (default 10)"
    )


def import_(parser):
    parser.add_argument("source", metavar="SOURCE", help="a folder of safetensors, or one such file")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run's folder, to be made")
    parser.add_argument("--config", metavar="FILE.py", help="corpus, training and evaluation (default: as exported)")


def geneval(parser):
    from rfjax.evaluation.geneval import files

    files.add_arguments(parser)


def score(parser):
    from rfjax.scorers import command

    command.add_arguments(parser)


def fit(parser):
    from rfjax.report import fit_command

    fit_command.add_arguments(parser)


def plan(parser):
    from rfjax.plan import command

    command.add_arguments(parser)


def prepare(parser):
    from rfjax.prepare import command

    command.add_arguments(parser)


def duplicates(parser):
    from rfjax.duplicates import command

    command.add_arguments(parser)


def recaption(parser):
    from rfjax.prepare import recaption as command

    command.add_arguments(parser)


def inspect(parser):
    from rfjax.prepare import inspect as command

    command.add_arguments(parser)


def launch(parser):
    from rfjax.launch import command

    command.add_arguments(parser)


def bench(parser):
    from rfjax.bench import command

    command.add_arguments(parser)


def report(parser):
    parser.add_argument("runs", metavar="RUNS", help="a study's folder, or its results folder")
    parser.add_argument("--out", metavar="DIR", help="default: report, beside the results")


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


def parsers(verbs: Mapping[str, Verb], verb: str | None) -> tuple[argparse.ArgumentParser, dict[str, _VerbParser]]:
    """The parser of the command line, and by name those of `verbs`; of these, `verb`'s alone is whole."""
    parser = argparse.ArgumentParser(
        prog="rfjax", description="Scaling studies of rectified-flow text-to-image transformers.", allow_abbrev=False
    )
    each = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)
    for name, known in verbs.items():
        description = known.text[0].upper() + known.text[1:] + "."
        epilog = OVERRIDE_HELP if known.overridable else None
        sub = each.add_parser(name, help=known.text, description=description, epilog=epilog, allow_abbrev=False)
        if name == verb:  # the others' arguments need not be imported
            known.arguments(sub)
            if known.together:
                processes(sub)
    return parser, each.choices
