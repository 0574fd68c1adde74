"""A running node: phases, rendezvous, processes, clients."""
