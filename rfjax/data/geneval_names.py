"""GenEval's names: its tasks, colours and relations, in the order of the official files. No JAX here."""

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")  # of the subject to the target
