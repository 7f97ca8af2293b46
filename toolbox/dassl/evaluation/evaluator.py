"""Metrics of a split, computed batch by batch and printed at the end."""

import io
from collections import Counter, OrderedDict
from pathlib import Path

import torch
from dassl.utils import Registry, UsageError, mkdir_if_missing

from common.files import write_bytes

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    """Build the registered evaluator ``cfg.TEST.EVALUATOR`` with ``kwargs``, such as
    ``lab2cname``.
    """
    name = cfg.TEST.EVALUATOR
    if cfg.VERBOSE:
        print(f"Loading evaluator: {name}")
    return EVALUATOR_REGISTRY.get(name)(cfg, **kwargs)


class EvaluatorBase:
    """Base class: call ``reset()``, ``process(mo, gt)`` for each batch, then ``evaluate()``."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self):
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo, gt):
        """Add the model's output and the ground truth of one batch."""
        raise NotImplementedError

    def evaluate(self):
        """The metrics of all batches, an OrderedDict of numbers, the main one first."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1, all in percent.

    Args:
        cfg (CfgNode): TEST.PER_CLASS_RESULT adds the accuracy of each class and their mean;
            TEST.COMPUTE_CMAT saves the confusion matrix, rows (true classes) normalised, as a
            tensor in ``OUTPUT_DIR/cmat.pt``.
        lab2cname (dict, optional): class names by label; without it, TEST.PER_CLASS_RESULT is a
            UsageError.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise UsageError(
                "TEST.PER_CLASS_RESULT needs the class names, lab2cname: pass them or set it to "
                "False"
            )
        self._lab2cname = lab2cname
        self.reset()

    def reset(self):
        self._y_true = []
        self._y_pred = []

    def process(self, mo, gt):
        """Add logits [batch, n_classes] and labels [batch]; UsageError if an image's largest logit
        is not finite.
        """
        if not mo.amax(dim=1).isfinite().all():  # NaN if any is; minus infinity leaves out a class
            remedy = "use other weights, the checkpoint of another epoch, or full precision"
            raise UsageError("the model gives logits that are not finite", remedy)
        self._y_true.extend(gt.tolist())
        self._y_pred.extend(mo.argmax(dim=1).tolist())

    def evaluate(self):
        """Print and return the metrics of all batches in percent; UsageError if there were none.

        They are ``accuracy``, ``error_rate``, ``macro_f1`` (over the labels that occur) and, with
        TEST.PER_CLASS_RESULT, ``perclass_accuracy``.
        """
        if not self._y_true:
            raise UsageError(
                "nothing to evaluate: the split has no images; check the dataset and TEST.SPLIT"
            )
        true = Counter(self._y_true)
        predicted = Counter(self._y_pred)
        correct = Counter(
            label for label, pred in zip(self._y_true, self._y_pred, strict=True) if label == pred
        )
        accuracy = 100.0 * correct.total() / true.total()
        # F1 is 2 TP / (true + predicted). Counted here, because scikit-learn takes a second to
        # import.
        f1 = [2 * correct[label] / (true[label] + predicted[label]) for label in sorted(true)]
        macro_f1 = 100.0 * sum(f1) / len(f1)
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1)
        print(f"=> result\n* total: {true.total():,}\n* correct: {correct.total():,}")
        print(
            f"* accuracy: {accuracy:.1f}%\n* error: {100.0 - accuracy:.1f}%\n* macro_f1: "
            f"{macro_f1:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._report_classes(true, correct)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix()
        return results

    def _report_classes(self, true, correct):
        """Print the accuracy of each class; return their mean in percent."""
        print("=> per-class result")
        accuracies = {label: 100.0 * correct[label] / true[label] for label in sorted(true)}
        for label, accuracy in accuracies.items():
            counts = f"total: {true[label]:,}\tcorrect: {correct[label]:,}"
            name = self._lab2cname.get(label, "no training images")
            print(f"* class: {label} ({name})\t{counts}\tacc: {accuracy:.1f}%")
        mean = sum(accuracies.values()) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_confusion_matrix(self):
        from sklearn.metrics import confusion_matrix  # takes a second, and is rarely needed

        matrix = confusion_matrix(self._y_true, self._y_pred, normalize="true")
        path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
        mkdir_if_missing(path.parent)
        buffer = io.BytesIO()
        torch.save(torch.from_numpy(matrix), buffer)
        write_bytes(path, buffer.getvalue())
        print(f"Confusion matrix is saved to {path}")
