"""Real nodes and a real coordinator in one process, for research, demos and tests.

::

    from dovetail.simulation.running import run_study
    from dovetail.simulation.study_file import read_study

    result = run_study(read_study("study.toml"))
    result.table()
    result.plot()
"""
