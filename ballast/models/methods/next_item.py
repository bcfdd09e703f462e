"""Next-item prediction from item ids: any backbone under any loss.

With backbone `sasrec` and loss `bce` this is SASRec (Kang & McAuley, ICDM 2018, arXiv 1808.09781, loss
of eq. 7); with `cross_entropy` the same model under the softmax over the full catalogue, which alone
explains much of what later papers report as gains.

Departs from the paper: see ballast/models/backbones/sasrec.py; item vectors are not multiplied by
sqrt(D), since the layer norm that follows removes the scale.
"""

from ballast.models.sequential import IdMethod


class NextItem(IdMethod):
    """A sequence encoder whose last state scores every item by a dot product."""
