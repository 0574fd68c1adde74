"""The API server: requests, watches, streams; knows nothing of runs."""
