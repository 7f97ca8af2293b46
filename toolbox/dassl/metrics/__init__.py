"""Metrics on batches of logits."""


def compute_accuracy(output, target, topk=(1,)):
    """Top-k accuracy of a batch, in percent.

    Args:
        output (Tensor): logits, [batch, n_classes]; for a list or tuple, its first item.
        target (Tensor): labels, [batch].
        topk (tuple of int): the values of k; for each one the result has a tensor of shape [1].
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # [batch, max k], best first
    correct = ranked == target.view(-1, 1)
    return [correct[:, :k].sum().float().mul(100.0 / target.shape[0]).view(1) for k in topk]
