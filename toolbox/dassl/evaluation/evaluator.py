"""Metrics of a split, computed batch by batch and printed at the end."""

from collections import Counter, OrderedDict
from pathlib import Path

import torch
from dassl.utils import UsageError, mkdir_if_missing

from .build import EVALUATOR_REGISTRY

__all__ = ["Classification", "EvaluatorBase"]


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
        """Return the metrics of all batches as an OrderedDict of numbers, the main one first."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1, all in percent.

    Args:
        cfg (CfgNode): TEST.PER_CLASS_RESULT adds the accuracy of each class and their mean; TEST.COMPUTE_CMAT saves the
            confusion matrix, rows (true classes) normalised, as a tensor in ``OUTPUT_DIR/cmat.pt``.
        lab2cname (dict, optional): class names by label; TEST.PER_CLASS_RESULT needs it.

    Raises:
        UsageError: TEST.PER_CLASS_RESULT is set, but ``lab2cname`` is missing.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise UsageError(
                "TEST.PER_CLASS_RESULT needs lab2cname, the class names by label: pass it or set the option to False"
            )
        self._lab2cname = lab2cname
        self.reset()

    def reset(self):
        self._correct = 0
        self._total = 0
        self._y_true = []
        self._y_pred = []

    def process(self, mo, gt):
        """Add one batch.

        Args:
            mo (Tensor): logits, [batch, n_classes].
            gt (Tensor): labels, [batch].
        """
        pred = mo.argmax(dim=1)
        self._correct += int((pred == gt).sum())
        self._total += gt.shape[0]
        self._y_true.extend(gt.tolist())
        self._y_pred.extend(pred.tolist())

    def evaluate(self):
        """Print the metrics of all batches and return them.

        Returns:
            OrderedDict: ``accuracy``, ``error_rate``, ``macro_f1`` (over the labels that occur) and, with
            TEST.PER_CLASS_RESULT, ``perclass_accuracy``, in percent.

        Raises:
            UsageError: no samples were processed.
        """
        if self._total == 0:
            raise UsageError("nothing to evaluate: the split has no images; check the dataset and TEST.SPLIT")
        accuracy = 100.0 * self._correct / self._total
        error = 100.0 - accuracy
        labels = sorted(set(self._y_true))
        macro_f1 = 100.0 * sum(self._f1(labels)) / len(labels)
        results = OrderedDict(accuracy=accuracy, error_rate=error, macro_f1=macro_f1)
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {error:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._report_classes(labels)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix()
        return results

    def _report_classes(self, labels):
        """Print the accuracy of each class; return their mean in percent."""
        totals, corrects = Counter(self._y_true), self._count_correct()
        print("=> per-class result")
        accuracies = []
        for label in labels:
            total, correct = totals[label], corrects[label]
            accuracies.append(100.0 * correct / total)
            print(
                f"* class: {label} ({self._lab2cname[label]})\t"
                f"total: {total:,}\t"
                f"correct: {correct:,}\t"
                f"acc: {accuracies[-1]:.1f}%"
            )
        mean = sum(accuracies) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean

    def _f1(self, labels):
        """F1 of each label, 2 TP / (true + predicted); 0 for a class without correct predictions.

        Counted here, because every run would wait a second for the import of scikit-learn.
        """
        true, predicted, correct = Counter(self._y_true), Counter(self._y_pred), self._count_correct()
        return [2 * correct[label] / (true[label] + predicted[label]) for label in labels]

    def _count_correct(self):
        return Counter(true for true, pred in zip(self._y_true, self._y_pred, strict=True) if true == pred)

    def _save_confusion_matrix(self):
        from sklearn.metrics import confusion_matrix  # takes a second, and is rarely needed

        matrix = confusion_matrix(self._y_true, self._y_pred, normalize="true")
        path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
        mkdir_if_missing(path.parent)
        torch.save(torch.from_numpy(matrix), path)
        print(f"Confusion matrix is saved to {path}")
