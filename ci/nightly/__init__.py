"""What runs every night and how it went: matrix, history, trend, baselines."""
