"""The stand-in KV transfer and KV pools."""
