"""Searching for settings: what may vary, how trials run, which one wins."""
