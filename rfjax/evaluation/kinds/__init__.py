"""The kinds of evaluation, a module each: when it is `due`, what to `check` before training, and how to `measure`."""
