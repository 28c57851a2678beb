"""Run records → a table for the terminal, plots, and one self-contained HTML page.

Everything shown is computed from the files that a run leaves (``records``); nothing here needs
torch or Ray, so a report can be made anywhere the records are copied to.
"""
