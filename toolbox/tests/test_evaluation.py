"""The metrics and the printed output of the evaluator, and top-k accuracy."""

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.evaluation import Classification, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.utils import UsageError

# 5 images of class 0, 3 of class 1, 2 of class 3; class 2 does not occur but is predicted once.
TRUE = [0, 0, 0, 0, 0, 1, 1, 1, 3, 3]
PRED = [0, 0, 0, 0, 1, 1, 1, 2, 3, 0]


def logits(pred, n_classes=4):
    return torch.nn.functional.one_hot(torch.tensor(pred), n_classes).float()


def evaluate(cfg, true=TRUE, pred=PRED, n_classes=4, **kwargs):
    evaluator = build_evaluator(cfg, **kwargs)
    for start in range(0, len(true), 4):
        evaluator.process(
            logits(pred[start : start + 4], n_classes), torch.tensor(true[start : start + 4])
        )
    return evaluator.evaluate()


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    return cfg


def test_metrics_and_printed_output(cfg, capsys):
    results = evaluate(cfg, TRUE * 420, PRED * 420)
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    # F1 of class 0 is 2*4/(5+5), of 1 2*2/(3+3), of 3 2*1/(2+1); class 2 is not among the true
    # labels.
    assert results["macro_f1"] == pytest.approx(100 * (0.8 + 2 / 3 + 2 / 3) / 3)
    assert results["accuracy"] == 70.0 and results["error_rate"] == 30.0
    assert all(type(value) is float for value in results.values())
    assert capsys.readouterr().out == (  # as published parse_test_res.py scripts read it
        "Loading evaluator: Classification\n=> result\n* total: 4,200\n* correct: 2,940\n"
        "* accuracy: 70.0%\n* error: 30.0%\n* macro_f1: 71.1%\n"
    )


def test_non_finite_logits_or_no_logits_give_an_error(cfg):
    evaluator = Classification(cfg)
    labels = torch.tensor([0, 1])
    # A class that is left out
    evaluator.process(torch.tensor([[1.0, float("-inf")], [0.0, 1.0]]), labels)
    for value in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="gives logits that are not finite"):
            evaluator.process(torch.tensor([[1.0, 0.0], [value, 1.0]]), labels)
    evaluator.reset()
    with pytest.raises(UsageError, match="no images"):
        evaluator.evaluate()


def test_per_class_accuracy(cfg, capsys):
    cfg.TEST.PER_CLASS_RESULT = True
    results = evaluate(cfg, lab2cname=dict(enumerate(["cat", "dog", "owl"])))
    assert results["perclass_accuracy"] == pytest.approx((80 + 200 / 3 + 50) / 3)
    printed = capsys.readouterr().out
    assert (
        "=> per-class result\n* class: 0 (cat)\ttotal: 5\tcorrect: 4\tacc: 80.0%\n* class: 1 (dog)"
        in printed
    )
    assert "* class: 3 (no training images)\ttotal: 2" in printed
    assert "owl" not in printed and printed.endswith("* average: 65.6%\n")


def test_confusion_matrix_is_saved(cfg, tmp_path):
    cfg.TEST.COMPUTE_CMAT = True
    evaluate(cfg)
    matrix = torch.load(tmp_path / "run" / "cmat.pt")
    expected = [[0.8, 0.2, 0, 0], [0, 2 / 3, 1 / 3, 0], [0, 0, 0, 0], [0.5, 0, 0, 0.5]]
    assert torch.allclose(matrix, torch.tensor(expected, dtype=torch.float64))


def test_compute_accuracy():
    output = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
    target = torch.tensor([1, 1, 0, 2])
    top1, top2, top3 = compute_accuracy(output, target, topk=(1, 2, 3))
    assert [top.item() for top in (top1, top2, top3)] == [25.0, 50.0, 100.0] and top1.shape == (1,)
    assert compute_accuracy((output, None), target)[0].item() == 25.0
