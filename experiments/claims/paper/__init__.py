"""The paper's claims, one module each, and the registry that lists them."""
