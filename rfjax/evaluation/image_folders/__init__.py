"""Layouts of folders of images: GenEval's and T2I-CompBench's, which official scorers read, and a numbered layout."""
