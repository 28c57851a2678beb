"""What a person reads: sheets of plain cells shown in a terminal, on one HTML page or as Markdown;
plots; verdicts.

What it says of runs is computed from the files that they leave. Nothing here needs torch or Ray, so
a report can be made anywhere that the records are copied to.
"""
