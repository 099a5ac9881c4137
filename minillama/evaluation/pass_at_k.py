"""Evaluation: from one number to a judgement.

Written by notebooks/15_evaluation.ipynb: edit it there.
"""

import math


CODE_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```")


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k programs is right, estimated without bias from n of which c
    are right.

    ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"no estimate of pass@{k} from {c} right programs of {n}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
