"""Running a study: its points, trained and measured alone or together."""
