"""What only those need who run a fleet step by step: what runs, its end, bringing files home."""
