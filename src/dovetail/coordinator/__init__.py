"""Runs jobs over the partners' nodes, and never sees a row."""
