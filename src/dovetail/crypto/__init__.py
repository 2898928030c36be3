"""Keys, keystreams and canonical bytes: the one door to ``cryptography``."""
