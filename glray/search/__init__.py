"""Searching for a schedule: which there are, which to try, when to stop a trial. Pure, except for
Optuna's journal."""
