"""The operating system: processes, addresses, memory. Knows no noun of ours."""
