"""GSFS for a base that must itself learn, say a large one with LoRA adapters.

Where it leaves ``gsfs_paper``, and the setting that does it:

    the paper waits for ever when fewer than 60 % upload    ``deadline_s``; after 3 silent rounds a
                                                            site uploads in any case (``rounds``)
    its 60 % are always the fastest sites                   80 % (``share``); a smaller pool moves
                                                            the model in proportion
    a frequent uploader can decide alone                    ``frequency_power``, ``frequency_bound``
    a stale update counts in full                           ``staleness_exponent``
    a broadcast overwrites what was not sent (eq 15)        it is put on top (``keep_local``)
    it mentions partial updates                             only layers that triggered travel
                                                            (``partial``)
    a client trains on after an upload                      it rests until the next model (``wait``)
"""

from __future__ import annotations

from typing import ClassVar

from gradsense.federation.algorithms.fedavg import FedAvg
from gradsense.federation.algorithms.gsfs_paper import FrequencyMean
from gradsense.federation.parts import part
from gradsense.federation.pools import Pool, Quorum
from gradsense.federation.rules.rule import DeltaRule
from gradsense.federation.triggers import AnyOf, Gradient, Performance, Silence, Trigger


@part
class GsfsTune(FedAvg):
    """Gradient sensing with a deadline, bounded weights and partial uploads."""

    name: ClassVar[str] = "gsfs-tune"
    summary: ClassVar[str] = (
        "trains the whole model; sensing with a deadline, bounded weights, partial uploads"
    )

    trigger: Trigger = AnyOf((Performance(), Gradient(), Silence(3)))
    pool: Pool = Quorum(0.8, deadline_s=30.0)
    rule: DeltaRule = FrequencyMean(
        samples_power=0.5,
        frequency_power=0.5,
        frequency_bound=2.0,
        staleness_exponent=0.5,
        full_step_share=0.8,
    )
    keep_local: bool = True
    partial: bool = True
