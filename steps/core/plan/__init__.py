"""From a case and a cluster to a plan: values out of values. Pure."""
