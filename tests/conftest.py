"""Before any test imports JAX: libtpu, which one test needs, must not make the others try for a TPU."""

import os

from rfjax.cli.environment import leave_out_absent_tpu

leave_out_absent_tpu(os.environ)
