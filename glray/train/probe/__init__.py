"""Time, memory and largest batch at each length: the paper's Tables 1 to 3 (section 3.2)."""
