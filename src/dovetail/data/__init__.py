"""A partner's own table: read, checked, encoded and kept at hand; the door to DuckDB."""
