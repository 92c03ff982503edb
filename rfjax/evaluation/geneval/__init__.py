"""GenEval: its rules and scores, its files, and judgements prompt by prompt. No JAX here."""
