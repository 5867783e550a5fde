"""Notebooks executed: a run, its plan and record, experiments of many runs, the machine."""
