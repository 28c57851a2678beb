"""One run: what was declared, planned and recorded. No torch, no Ray."""
