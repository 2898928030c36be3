"""Real nodes and the real coordinator in one process: the channel, clock and dice differ."""
