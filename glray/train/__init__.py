"""The loop of one worker, its checkpoints and evaluations, and the boundary that puts it on Ray."""
