"""pass@k: the chance that at least one of k answers to a problem is correct.

The unbiased estimator of Codex (Chen et al. 2021, arXiv 2107.03374, section 2.1): of n samples, c
of them correct, the share of all sets of k that hold a correct one, 1 - C(n-c, k) / C(n, k). The
shorter 1 - (1 - c/n)^k is biased: it draws the k with replacement.

Shapes: N problems, k samples of each.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ziphius.evals.errors import EvalError


def pass_at_k(correct_N: ArrayLike, samples_N: ArrayLike, k: int) -> NDArray[np.float64]:
    """Estimate pass@k of every problem, [N].

    Args:
        correct_N: how many samples of each problem are correct.
        samples_N: how many there are; one number where all problems have the same.
        k: 1 or more.

    Raises:
        EvalError: a problem has fewer than `k` samples.
    """
    correct, samples = np.broadcast_arrays(
        np.asarray(correct_N, dtype=np.int64), np.asarray(samples_N, dtype=np.int64)
    )
    assert bool(((correct >= 0) & (correct <= samples)).all()), "more correct than sampled"
    fewest = int(samples.min(initial=np.iinfo(np.int64).max))
    if not 1 <= k <= fewest:
        raise EvalError(f"pass@{k} needs {k} samples of every problem, and one has {fewest}.")
    # C(n-c, k) / C(n, k), factor by factor: no factorial, so nothing overflows or cancels.
    drawn = np.arange(k)
    wrong = np.clip((samples - correct)[..., None] - drawn, 0, None)
    all_wrong: NDArray[np.float64] = (wrong / (samples[..., None] - drawn)).prod(axis=-1)
    return 1.0 - all_wrong
