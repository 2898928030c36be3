"""Flower's messages, grid, client app and strategies: the one door to ``flwr``."""

from dovetail.flower import _compat as _compat  # sets Flower's environment before any import of it
