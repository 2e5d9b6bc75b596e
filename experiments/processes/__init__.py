"""Processes that train one run together, and threads."""
