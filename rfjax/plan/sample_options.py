"""The options of `--sample`, which `rfjax plan` and `rfjax bench` share."""

from __future__ import annotations

import argparse


def add_sample_options(parser: argparse.ArgumentParser, about: str) -> None:
    """Adds the options. `about` says what `--sample` does in this verb."""
    add = parser.add_argument
    add("--sample", action="store_true", help=about)
    batch = "with --sample: images at once, over all devices (default: one a device)"
    add("--batch", type=int, metavar="N", help=batch)
    weights = "with --sample: types of the stored weights, of float32, bfloat16 and int8 (default: all three)"
    add("--weights", metavar="NAMES", help=weights)
    size = "with --sample: in latent pixels, such as 128x128 for 1024x1024 (default: the config's)"
    add("--latent-size", metavar="HxW", help=size)


def check_sample_options(args: argparse.Namespace) -> None:
    """Raises `ConfigError` for options that belong to `--sample` but are given without it."""
    from rfjax.errors import ConfigError

    given = {"--batch": args.batch, "--weights": args.weights, "--latent-size": args.latent_size}
    for option, value in given.items():
        if value is not None and not args.sample:
            raise ConfigError(f"{option} belongs to --sample; give --sample, or leave it out")


def read_sample_options(args: argparse.Namespace) -> tuple[tuple[int, int] | None, tuple[str, ...]]:
    """Returns the latents' (height, width), and the types to store the weights in, in the order given. The size is None
    if the config decides it."""
    from rfjax.inputs.text import split_names
    from rfjax.models.quantised import STORED
    from rfjax.option_limits import parse_latent_size

    return parse_latent_size(args.latent_size), split_names(args.weights, "--weights") or tuple(STORED)
