"""The statements of MacDonald et al. 2023, each a function that measures both sides on any network.

=====  ============================================================  =========================
no.    statement                                                     function
=====  ============================================================  =========================
1      chain rule ``D_{θ_l}F = Jf_L ⋯ Jf_{l+1} Df_l``                 ``chain_rule``
2      regularity ``λ(DF) ≥ Σ_l λ(Df_l) Π_{j>l} λ(Jf_j)``             ``regularity``
3, 4   PŁ chain ``λ(DF)|∇c|² ≤ |∇ℓ|² = ∇cᵀK∇c ≤ ‖DF‖²|∇c|²``          ``pl_chain``
5      curvature ``‖∇²ℓ‖ ≤ ‖D²F‖|∇c| + ‖DF‖²‖∇²c‖``, layer by layer   ``curvature``
6      skips ``σ_min(αI + Jg) ≥ α − ‖Jg‖``                            ``skip_bound``
7      convergence, ``ℓ_{t+1} ≤ ℓ_t − (η/2) λ |∇c|²``                 ``guaranteed_decrease``
=====  ============================================================  =========================

The functions are exported by ``skip_conditioning``; the numbers are those of docs/paper.md §2. All but the last return
``Statement`` objects, or have them as attributes: both sides, the slack, and a verdict, *holds*, *violated* (a finding,
never raised) or *vacuous* with its cause. Proofs, and what each looks like in practice, are in docs/theory.md;
``skip-conditioning theory`` checks all of them along real training.
"""
