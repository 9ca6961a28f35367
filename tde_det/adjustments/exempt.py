"""The one rule for the background: adjustments reorder the classes and leave it as it is.

    p = softmax(y), q = softmax(t):   score_bg = p_bg,   score_i = (1 − p_bg) · q_i / (1 − q_bg)

Source: background-exempted inference of Tang et al., NeurIPS 2020. The authors' code returns
probabilities here, to which the detector then applies softmax a second time.
"""

import torch
from torch import Tensor


def exempt_background(logits: Tensor, adjusted: Tensor) -> Tensor:
    """Logits of the scores above: t_fg − lse(t_fg) + lse(y_fg) beside the background logit of y.

    Args:
        logits: ``Tensor[N, C+1]``, y.
        adjusted: ``Tensor[N, C+1]``, t.
    """
    y, t = logits[:, :-1], adjusted[:, :-1]
    t = torch.log_softmax(t, dim=1) + torch.logsumexp(y, dim=1, keepdim=True)
    return torch.cat([t, logits[:, -1:]], dim=1)
