"""The processes that train one run together, and the machine they are on."""
