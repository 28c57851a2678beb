"""The loop of one worker, its checkpoints and evaluations, and the edge that puts it on Ray."""
