"""A pip that installs nothing; see ``__main__``."""
