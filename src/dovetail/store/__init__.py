"""Ledgers and released models on disk: the one door to ``sqlalchemy`` and ``safetensors``."""
