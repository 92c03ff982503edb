"""The results table: its columns, its files, and tables that other tools wrote."""
