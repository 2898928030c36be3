"""Real nodes and a real coordinator in one process, for research, demos and tests.

::

    from dovetail.simulation import Study

    result = Study.load("study.toml").run()
    result.table()
    result.plot()
"""

from dovetail.simulation.study import Study

__all__ = ["Study"]
