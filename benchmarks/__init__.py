"""Figures that the documentation quotes; `scripts/bench` lists and runs them."""
