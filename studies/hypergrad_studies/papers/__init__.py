"""The registry of reproductions: name -> a study of a figure or table of the papers."""

from hypergrad_studies.papers.hypernetworks import (
    hypernet_1d,
    hypernet_10,
    hypernet_7850,
    hypernet_depth,
    hypernet_predict,
)
from hypergrad_studies.papers.results import Study
from hypergrad_studies.papers.reversible_learning import (
    chaos,
    initial_gradient,
    initial_scales,
    l2_per_weight,
    memory,
    omniglot_sharing,
    schedules,
    schedules_adam,
    schedules_rivals,
    schedules_transfer,
    schedules_truncated,
    training_data,
)

STUDIES: dict[str, Study] = {
    "schedules": schedules.study,
    "initial-scales": initial_scales.study,
    "initial-gradient": initial_gradient.study,
    "l2-per-weight": l2_per_weight.study,
    "training-data": training_data.study,
    "omniglot-sharing": omniglot_sharing.study,
    "chaos": chaos.study,
    "memory": memory.study,
    "schedules-rivals": schedules_rivals.study,
    "schedules-adam": schedules_adam.study,
    "schedules-transfer": schedules_transfer.study,
    "schedules-truncated": schedules_truncated.study,
    "hypernet-7850": hypernet_7850.study,
    "hypernet-10": hypernet_10.study,
    "hypernet-predict": hypernet_predict.study,
    "hypernet-1d": hypernet_1d.study,
    "hypernet-depth": hypernet_depth.study,
}
