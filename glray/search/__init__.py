"""Searching for a schedule: what there is to try, what to try first, when to stop a trial. Pure."""
