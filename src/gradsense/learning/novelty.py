"""How unlike everything seen so far a flow is, without a label and without a second model.

Two sources. The pretrained base gives each prompt a likelihood; what it finds improbable is new to
the base. The summed statistics that the cloud holds anyway (``learning.statistics``) say which
directions of feature space the fleet's flows span; what lies outside is new to the fleet. The
second costs a site no further byte and no further pass over its flows.

Every score is larger for what is more novel. None has a natural threshold: compare with the scores
of held-out flows of known classes, and take a quantile of those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers.models.opt.modeling_opt import OPTDecoder

from gradsense.learning.statistics import FleetStatistics, penalised_gram, solve
from gradsense.models.classifier import Encoded, TextClassifier
from gradsense.models.heads.influence import LEAST_RESIDUAL, SketchedInfluence
from gradsense.models.heads.readout import Readout

_BATCH = 512
#: Rows of a sketch. With 128 the AUROC on held-out classes is within 0.003 of the exact score's.
SKETCH_ROWS = 128


@torch.inference_mode()
def token_surprise(classifier: TextClassifier, encoded: Encoded) -> NDArray[np.float64]:
    """−ln p(token | the tokens before it) under the base, in nats, [n, length − 1].

    The first token has none before it and no score. As in ``pretraining``, the output weights are
    the input embeddings (OPT: Zhang et al. 2022, arXiv 2205.01068).

    Args:
        classifier: with an OPT base; its head is not used.
        encoded: n prompts of one length of at least two tokens.

    Raises:
        ValueError: the base is no OPT, or prompts are padded or too short.
    """
    decoder = _decoder(classifier)
    if encoded.attention_mask is not None or encoded.input_ids.shape[1] < 2:
        raise ValueError("perplexity needs prompts of one length, of two tokens or more")
    classifier.model.eval()
    parts = []
    for ids in torch.split(encoded.input_ids.to(decoder.embed_tokens.weight.device), _BATCH):
        states = decoder(input_ids=ids).last_hidden_state[:, :-1]
        logits = states @ decoder.embed_tokens.weight.T
        parts.append(functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none"))
    surprise: NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    return surprise


def perplexity(classifier: TextClassifier, encoded: Encoded) -> NDArray[np.float64]:
    """The mean of ``token_surprise`` over a prompt's tokens, in nats a token, [n].

    It is the logarithm of what is usually called perplexity; the order is the same.
    """
    mean: NDArray[np.float64] = token_surprise(classifier, encoded).mean(axis=1)
    return mean


def leverage(
    features: NDArray[np.float64], statistics: NDArray[np.float64], regularisation: float = 1e-4
) -> NDArray[np.float64]:
    """h = xᵀ (G + Λ)⁻¹ x: how little the flows behind the statistics span this one, [n].

    G is the part of S that no label enters, Λ the penalty of ``statistics.solve``, which leaves the
    constant alone. Three readings of the same number:

    - With Λ = 0 the diagonal of the hat matrix; a flow seen k times before has h ≤ 1/k.
    - With N flows of mean μ and scatter N Σ, h = (1 + (x − μ)ᵀ (Σ + Λ/N)⁻¹ (x − μ)) / N: the
      squared Mahalanobis distance to the fleet's mean, regularised.
    - σ² h is the predictive variance of Bayesian ridge regression with noise σ², so h is how
      unsure the head must be of its own output.

    Args:
        features: what the head reads, [n, d], without the constant.
        statistics: S, [d + 1 + classes, d + 1 + classes], of at least one flow.
        regularisation: λ > 0, as in ``statistics.solve``.

    Raises:
        ValueError: the statistics are of other features.
    """
    known, penalised = _system(features, statistics, regularisation)
    scores: NDArray[np.float64] = (known.T * np.linalg.solve(penalised, known.T)).sum(axis=0)
    return scores


def influence(
    features: NDArray[np.float64], statistics: NDArray[np.float64], regularisation: float = 1e-4
) -> NDArray[np.float64]:
    """(‖y − Wx − b‖² + ε) h: how a flow pulls at the head, its own verdict y taken as true, [n].

    The residual sees flows between the classes, which may lie well within the span of what was
    seen; leverage sees flows outside that span, however sure the head is of them. Without ε the
    product is the squared norm of the flow's gradient x (Wx + b − y)ᵀ in the metric of the loss's
    own curvature G + Λ: sensing (eq 9-11), flow by flow. To first order in h it is Cook's distance
    (Cook 1977) of a flow that is not yet in the regression, up to a constant; kin to GradNorm
    (Huang et al. 2021, arXiv 2110.00218). ε only matters where the residual says nothing: a head
    that has seen one class answers the same to everything, and the order is then leverage's.

    Args:
        features, statistics, regularisation: as for ``leverage``; every flow behind S has a label.

    Raises:
        ValueError: the statistics are of other features.
    """
    classes = len(statistics) - features.shape[1] - 1
    pull = leverage(features, statistics, regularisation)
    weight, bias = solve(statistics, classes, regularisation)
    outputs = features @ weight.T + bias
    missed: NDArray[np.float64] = np.eye(classes)[outputs.argmax(axis=1)] - outputs
    scores: NDArray[np.float64] = ((missed**2).sum(axis=1) + LEAST_RESIDUAL) * pull
    return scores


def sketch(
    statistics: NDArray[np.float64],
    classes: int,
    *,
    sharpness: float,
    regularisation: float = 1e-4,
    rows: int = SKETCH_ROWS,
    seed: int,
) -> SketchedInfluence:
    """``influence`` for a gateway: leverage from a random projection of a few rows.

    ``influence`` needs (G + Λ)⁻¹, for ``nano`` ten times as many multiplications a flow as its
    whole base. With G + Λ = L Lᵀ leverage is a squared length, h = ‖L⁻¹ [x; 1]‖², and R of r
    random rows of ±1/√r keeps lengths: with P = R L⁻¹, ‖P [x; 1]‖² has mean h and a standard
    deviation of at most h √(2/r) (Achlioptas 2003; for leverage Drineas, Magdon-Ismail, Mahoney
    and Woodruff 2012, JMLR 13). One P for all flows, so flows alike keep their order.

    Args:
        statistics, regularisation: as for ``influence``; those that the head was solved from.
        classes: how many of the last rows and columns of S are labels.
        sharpness: of the head, see ``federation.algorithms.gsfs``.
        rows: r.
        seed: draws R.
    """
    width = len(statistics) - classes
    root = np.linalg.cholesky(penalised_gram(statistics[:width, :width], regularisation))
    signs = np.random.default_rng([seed, 31]).choice([-1.0, 1.0], size=(rows, width))
    projection = np.linalg.solve(root.T, signs.T / np.sqrt(rows)).T
    return SketchedInfluence.of(projection, sharpness)


def fleet_score(
    statistics: FleetStatistics | None, classes: int, *, seed: int
) -> SketchedInfluence | None:
    """The score of what a fleet has not seen; None where it has no statistics."""
    if statistics is None:
        return None
    return sketch(
        statistics.matrix,
        classes,
        sharpness=statistics.sharpness,
        regularisation=statistics.regularisation,
        seed=seed,
    )


def _system(
    features: NDArray[np.float64], statistics: NDArray[np.float64], regularisation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[x; 1] of each flow, [n, d + 1], and G + Λ."""
    width = features.shape[1] + 1
    if len(statistics) < width:
        raise ValueError(
            f"statistics of {len(statistics)} rows for {width - 1} features and a constant"
        )
    gram = statistics[:width, :width]
    known = np.hstack([features, np.ones((len(features), 1))])
    return known, penalised_gram(gram, regularisation)


def _decoder(classifier: TextClassifier) -> Any:
    """The OPT decoder under a head over all tokens or over the last."""
    model = classifier.model
    base: Any = model.base if isinstance(model, Readout) else getattr(model, "model", None)
    decoder = getattr(base, "decoder", None)
    if not isinstance(decoder, OPTDecoder):
        raise ValueError("perplexity needs an OPT base, as the embedded models have")
    return decoder
