"""From a partner's files to bounded arrays of customers: the one door to ``duckdb``."""
