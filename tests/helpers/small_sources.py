"""Writes small tars and Parquet files of given content."""

import json
import tarfile

from helpers.photographs import add_member


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            add_member(tar, name, content)
    return path


def write_parquet(path, columns, about=None):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    if about:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": about}})})
    pyarrow.parquet.write_table(table, path)
