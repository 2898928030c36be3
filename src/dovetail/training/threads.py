"""How many processor threads training takes."""

from __future__ import annotations

import torch


def use_one_thread() -> None:
    """Keeps torch to one thread for the rest of this process.

    The matrices here are small: on two cores, three nodes with two threads each took ten times as
    long per round as with one. Several processes use several cores better.
    """
    torch.set_num_threads(1)
