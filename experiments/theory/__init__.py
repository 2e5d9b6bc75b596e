"""The theory's statements, checked on networks that train: ``python -m experiments.theory [NAME…] --out DIR``.

One module for each experiment; ``setting`` holds what all of them share, ``__main__`` the command line.
"""
