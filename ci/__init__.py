"""What runs once, on the machine that starts a run: never on a node."""
