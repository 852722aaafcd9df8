"""From probabilities to alarms: a threshold on suspicion.

It is chosen so that at most a given share of benign flows raises an alarm.

Suspicion is 1 − p(benign). Which attack it is does not matter for whether to raise an alarm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Share of benign validation flows that may raise an alarm. Half of the 0.5 % that the product
#: promises, because what holds on validation flows holds on others only roughly.
FALSE_ALARM_SHARE = 0.0025
#: Never raise one for what is likelier benign than not: where validation flows are so easy that
#: they leave room below, other flows of the same site need not be.
LEAST_THRESHOLD = 0.5


def threshold_for(suspicion: npt.NDArray[np.floating], share: float = FALSE_ALARM_SHARE) -> float:
    """The lowest threshold from 0.5 up that at most ``share`` of these flows exceed.

    Args:
        suspicion: of benign flows, [n], 0..1.

    Returns:
        A flow raises an alarm where its suspicion is greater.
    """
    if not len(suspicion):
        return LEAST_THRESHOLD
    allowed = int(share * len(suspicion))
    return max(LEAST_THRESHOLD, float(np.sort(suspicion)[::-1][allowed]))


def flagged(
    suspicion: npt.NDArray[np.floating],
    truth: npt.NDArray[np.int64],
    classes: tuple[str, ...],
    threshold: float,
) -> dict[str, float]:
    """Share of each class's flows that raise an alarm; classes without flows are left out.

    Args:
        suspicion, truth: of each flow, [n].
        classes: names by number.
        threshold: from ``threshold_for``.
    """
    above = suspicion > threshold
    return {
        name: float(above[truth == number].mean())
        for number, name in enumerate(classes)
        if (truth == number).any()
    }
