"""How the nodes of a run tell one another how it goes: the leader listens, workers beat."""
