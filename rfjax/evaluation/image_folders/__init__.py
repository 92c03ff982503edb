"""Layouts of folders of images that official scorers read: GenEval's and T2I-CompBench's."""
