"""The paper's claims, and the registry that lists them."""
