"""Products under test: looked up where a run is planned, carried, and installed on its nodes."""
