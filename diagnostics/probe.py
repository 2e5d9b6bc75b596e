"""Loss and accuracy of a model on the probe, in the same conditions in which its spectra are measured."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from diagnostics.capture import logits_of, run
from diagnostics.errors import InputError
from diagnostics.isolation import State, quiet, unwrap
from diagnostics.maps import probe_input


def probe_metrics(model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Cross-entropy and accuracy for class indices, mean square error otherwise.

    Args:
        model: The model, left as it is.
        x: Probe inputs, shape ``(N, *input_shape)``.
        y: Class indices, for the last dimension of the logits or (as in PyTorch's losses) for the second, or real
            targets with as many entries as the logits.
        dtype: Precision of the measurement; None keeps the model's own.

    Returns:
        ``loss``, and ``accuracy`` for class indices, as scalars on the model's device.

    Raises:
        InputError: The targets do not fit the logits.
    """
    model = unwrap(model)
    x = probe_input(x, model, dtype)
    with quiet(model, batch_mode="batch"), torch.no_grad():
        logits = logits_of(run(model, State(model, dtype), (x,)))
    try:
        y = y.to(x.device)
        if y.is_floating_point():
            return {"loss": mse_loss(logits, y.to(logits.dtype).reshape(logits.shape))}
        if logits.dim() > 2 and y.shape == (logits.shape[0], *logits.shape[2:]):
            logits = logits.movedim(1, -1)
        loss = cross_entropy(logits.flatten(0, -2), y.long().flatten())
        return {"loss": loss, "accuracy": (logits.argmax(-1) == y).double().mean()}
    except (AttributeError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the probe's targets do not fit the logits ({reason}); correct or leave them out") from error
