"""What the captions that `rfjax recaption` wrote are called, and in which version."""

NAME = "captions.json"
FORMAT, VERSION = "rfjax-captions", 1
