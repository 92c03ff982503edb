"""The results table: its columns, its files, and the reader of other tools' tables."""
