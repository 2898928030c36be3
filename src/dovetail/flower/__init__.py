"""Flower's messages, grid, client app and strategies: the one door to ``flwr``."""
