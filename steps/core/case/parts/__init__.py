"""Parts of a case that are made apart from the rest: one server of its own, a proxy. Pure."""
