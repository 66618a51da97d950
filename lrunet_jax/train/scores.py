"""Scores of a network's answers, as NumPy functions of logits and labels.

All take logits (n, classes) and labels (n,), and the class that a network predicts is
that of the largest logit, the first of several; a NaN counts as the largest.
"""

import numpy as np


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax (n, classes) float64 of logits; NaN where one of a row is NaN."""
    wide = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # infinity less itself
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)


def predictions(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The predicted class (n,) of each row, and its probability (n,) float64."""
    classes = np.argmax(logits, axis=-1)
    shares = np.take_along_axis(probabilities(logits), classes[:, None], axis=-1)
    return classes, shares[:, 0]


def top_correct(logits: np.ndarray, labels: np.ndarray, count: int) -> int:
    """The images whose label is among the `count` classes of the largest logits.

    Of equal logits the first ones come first, as they do for the prediction. LruNet has
    many: its logits are 0 or more.
    """
    order = np.lexsort((-logits, ~np.isnan(logits)), axis=-1)  # by the last key first
    return int(np.sum(order[:, :count] == labels[:, None]))


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The images (classes, classes) int64 by true class, in rows, and predicted one."""
    classes = logits.shape[-1]
    places = np.asarray(labels, np.int64) * classes + np.argmax(logits, axis=-1)
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def calibration_error(
    logits: np.ndarray, labels: np.ndarray, num_bins: int = 15
) -> float:
    """The expected calibration error, a fraction, as of Guo et al. (1706.04599).

    Images are put in bins by the probability of the predicted class, its confidence;
    bin m of M is ((m - 1) / M, m / M]. It is the mean over all images of the distance
    between their bin's accuracy and its mean confidence; NaN if a confidence is.
    """
    predicted, confidence = predictions(logits)
    if np.isnan(confidence).any():
        return float("nan")
    bins = np.digitize(confidence, np.arange(1, num_bins) / num_bins, right=True)
    surplus = confidence - (predicted == labels)
    # A bin's images times the distance of its two means.
    distances = np.abs(np.bincount(bins, surplus, minlength=num_bins))
    return float(distances.sum() / len(labels))


def confident_mistakes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The images that are mistaken, the most confident first; those of NaN last."""
    predicted, confidence = predictions(logits)
    (mistaken,) = np.nonzero(predicted != labels)
    return mistaken[np.argsort(-confidence[mistaken], kind="stable")]
