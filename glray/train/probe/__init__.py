"""Measured before step 0: calibration, micro-batches, memory, matmul peak; and profiles."""
