"""Scores of answers: against cases computed by hand, and plain loops."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from oracle import needs_torch, torch

from lrunet_jax.train import scores

NAN, INF = math.nan, math.inf


def random_answers(seed, count=500, classes=12):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, count).astype(np.int32)


def with_confidence(*shares):
    """Logits of two classes, of which the first has these probabilities."""
    shares = np.asarray(shares, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(np.stack([shares, 1 - shares], axis=-1))


def calibration_error_by_loops(logits, labels, num_bins):
    """As Guo et al. write it: bins one by one, their accuracy and confidence."""
    found = []
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        powers = [math.exp(value - max(row)) for value in row]
        share = max(powers) / sum(powers)
        found.append((share, powers.index(max(powers)) == label))
    total = 0.0
    for number in range(num_bins):
        low, high = number / num_bins, (number + 1) / num_bins
        inside = [(share, hit) for share, hit in found if low < share <= high]
        if inside:
            confidence = sum(share for share, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(found) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_calibration_error_is_that_of_a_loop_over_bins(seed, num_bins):
    logits, labels = random_answers(seed)
    error = scores.calibration_error(logits, labels, num_bins)
    expected = calibration_error_by_loops(logits, labels, num_bins)
    assert error == pytest.approx(expected, abs=1e-12)  # sums of 500 float64


def test_the_calibration_error_by_hand():
    # Bins (0.7, 0.8] with 0.75 and 0.79, half right, and (0.9, 1] with 0.95, right.
    # The other eight are empty.
    logits = with_confidence(0.75, 0.79, 0.95)
    error = scores.calibration_error(logits, np.array([0, 1, 0]), 10)
    assert error == pytest.approx(2 / 3 * (0.77 - 0.5) + 1 / 3 * (1 - 0.95))


def test_errors_of_one_bin_cancel_and_those_of_two_do_not():
    answers = with_confidence(0.99, 0.61), np.array([1, 0])
    assert scores.calibration_error(*answers, 1) == pytest.approx(0.8 - 0.5)
    assert scores.calibration_error(*answers, 15) == pytest.approx((0.99 + 0.39) / 2)


def test_a_confidence_of_one_is_in_the_last_bin():
    logits = np.array([[200.0, 0.0], [0.0, 200.0]], np.float32)
    assert scores.predictions(logits)[1].tolist() == [1.0, 1.0]
    assert scores.calibration_error(logits, np.array([0, 1])) == 0
    assert scores.calibration_error(logits, np.array([1, 0])) == 1
    assert scores.calibration_error(logits, np.array([0, 0])) == 0.5


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    logits = np.array([[0.0, 0.0], *with_confidence(0.51)])
    # (0, 0.5] and (0.5, 1]: the two do not share a bin.
    error = scores.calibration_error(logits, np.array([0, 1]), 2)
    assert error == pytest.approx((0.5 + 0.51) / 2)


def test_logits_that_are_not_finite_have_no_calibration_and_raise_no_warning():
    labels = np.array([0, 1])
    for bad in (NAN, INF):
        logits = np.array([[bad, 0.0], [0.0, 1.0]], np.float32)
        assert np.isnan(scores.probabilities(logits)[0]).all()
        assert math.isnan(scores.calibration_error(logits, labels))
    fine = np.array([[-INF, 0.0], [0.0, 1.0]], np.float32)
    assert scores.probabilities(fine)[0].tolist() == [0, 1]


def test_a_matrix_has_true_classes_in_rows_and_counts_each_image_once():
    logits = np.eye(3)[[0, 1, 1, 2, 0]]
    labels = np.array([0, 0, 1, 2, 2])
    found = scores.confusion_matrix(logits, labels)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    logits, labels = random_answers(2)
    found = scores.confusion_matrix(logits, labels)
    expected = np.zeros((12, 12), int)
    for row, label in zip(logits, labels, strict=True):
        expected[label, max(range(12), key=lambda place: row[place])] += 1
    np.testing.assert_array_equal(found, expected)


def test_classes_without_images_have_empty_rows():
    found = scores.confusion_matrix(np.eye(4)[[3, 3]], np.array([1, 1]))
    assert found.shape == (4, 4)
    assert found[1, 3] == found.sum() == 2


@needs_torch
def test_the_top_five_are_those_of_torch():
    logits, labels = random_answers(3)
    top = torch.from_numpy(logits).topk(5).indices.numpy()
    assert scores.top_correct(logits, labels, 5) == np.sum(top == labels[:, None])


@hypothesis.given(
    st.lists(st.sampled_from([NAN, -INF, 0.0, 1.0, 2.0]), min_size=3, max_size=8),
    st.data(),
)
def test_the_top_one_is_the_prediction_and_the_top_all_is_everything(row, data):
    label = data.draw(st.integers(0, len(row) - 1))
    logits, labels = np.array([row], np.float32), np.array([label])
    hit = np.argmax(logits[0]) == label
    assert scores.top_correct(logits, labels, 1) == hit
    counts = [scores.top_correct(logits, labels, k + 1) for k in range(len(row))]
    assert counts == sorted(counts)
    assert counts[-1] == 1


def test_of_equal_logits_the_first_are_the_top():
    logits = np.zeros((1, 12), np.float32)
    hits = [scores.top_correct(logits, np.array([k]), 5) for k in range(12)]
    assert hits == [1] * 5 + [0] * 7


def test_mistakes_come_by_their_confidence():
    logits = with_confidence(0.6, 0.9, 0.2, NAN, 0.99, 0.9)
    labels = np.array([1, 1, 0, 1, 0, 1])
    # Predicted are 0, 0, 1, 0 (by the first NaN), 0, 0; the fifth is right.
    assert scores.confident_mistakes(logits, labels).tolist() == [1, 5, 2, 0, 3]
    assert scores.confident_mistakes(logits[4:5], labels[4:5]).tolist() == []
