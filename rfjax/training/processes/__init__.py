"""Many processes as one job: finding it, joining it, stopping together, and noticing who is lost."""
