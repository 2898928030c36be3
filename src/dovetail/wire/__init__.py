"""Moves bytes between a coordinator and its nodes, and decides nothing."""
