"""What gradient descent is guaranteed to gain: in one step from the state it is at, and in all from the start alone."""

from torch import Tensor

from skip_conditioning.diagnostics.loss.costs import Cost


def guaranteed_decrease(lr: Tensor, regularity: Tensor, cost_gradient_squared: Tensor) -> Tensor:
    """Lower bound of ``ℓ_t − ℓ_{t+1}`` for a step ``θ_{t+1} = θ_t − η∇ℓ``: ``η/2 · λ |∇c|²``.

    By the descent lemma the loss falls by at least ``η/2 · |∇ℓ|²`` where ``η ≤ 1/β``, β being a bound of the Hessian
    on the segment from ``θ_t`` to ``θ_{t+1}``; and ``|∇ℓ|² ≥ λ(DF) |∇c|²``.

    Args:
        lr: η, any shape.
        regularity: Lower bound λ of ``λ(DF)`` at ``θ_t``.
        cost_gradient_squared: ``|∇c|²`` at ``θ_t``.

    Source: PAPER.md, inequality 3 and statement 7.
    """
    return lr / 2 * regularity * cost_gradient_squared


def next_guarantee(guarantee: Tensor, lr: Tensor, regularity: Tensor, cost: Cost) -> Tensor:
    """Upper bound of ``ℓ_{t+1}`` from one of ``ℓ_t``: ``G_{t+1} = G_t − a·g(G_t)``, ``a = η/2 · λ``.

    g is the cost's `gradient_floor`. As ``ℓ ↦ ℓ − a·g(ℓ)`` does not decrease while ``a·g' ≤ 1``, ``ℓ_t ≤ G_t`` implies
    ``ℓ_{t+1} ≤ G_{t+1}``. With ``η ≤ 1/β`` it is so for both costs; a larger a is capped at ``1 / max g'``, with
    which the bound holds as well.

    Args:
        guarantee: ``G_t``, any shape.
        lr: η, at most 1/β.
        regularity: Lower bound λ of ``λ(DF)`` at ``θ_t``.
        cost: Of the outputs.

    Source: PAPER.md, statement 7.
    """
    gained = (lr / 2 * regularity).clamp(max=1 / cost.gradient_floor_slope)
    return guarantee - gained * cost.gradient_floor(guarantee)
