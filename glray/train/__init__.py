"""The loop of one worker, its checkpoints and evaluations. No Ray."""
