#!/bin/bash
@directives@
# Made by `rfjax launch`: what the points have left is merged, fitted and reported.
export JAX_PLATFORMS=cpu
@setup@
exec @command@
