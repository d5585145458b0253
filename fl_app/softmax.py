"""The loss of a classifier's outputs, and its derivative."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy, in nats, and its gradient by the logits.

    With p = softmax(logits) and y the one-hot target, that is (p - y) / B (Bishop 2006,
    "Pattern Recognition and Machine Learning", equation 4.109). It works in place: for
    where no gradient is recorded.

    Args:
        logits: (B, classes).
        targets: (B,), int64.
    """
    log_p = logits.log_softmax(1)
    loss = F.nll_loss(log_p, targets)
    of_target = targets.unsqueeze(1)
    residual = log_p.exp_()
    residual.scatter_add_(1, of_target, residual.new_full((), -1).expand_as(of_target))
    return loss, residual.div_(len(targets))
