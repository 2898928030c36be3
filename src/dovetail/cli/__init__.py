"""The ``dovetail`` command: each command parses, calls one function, prints."""
