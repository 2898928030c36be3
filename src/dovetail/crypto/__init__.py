"""Keys, keystreams, sealed messages and canonical bytes: the one door to ``cryptography``."""
