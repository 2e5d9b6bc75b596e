"""Training with diagnostics on, analysis of checkpoints, the theory's statements and the paper's claims.

The commands are on top: ``train``, ``spectrum_analysis``, ``verify``, ``theory``, ``sweep``, ``summary``,
``paired_ratios``. Each folder says what lives in it.
"""
