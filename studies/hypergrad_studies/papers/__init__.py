"""The registry of reproductions: name -> a study of a figure or table of the papers."""

from hypergrad_studies.papers import chaos, hypernet_10, hypernet_7850
from hypergrad_studies.papers.results import Study

STUDIES: dict[str, Study] = {
    "chaos": chaos.study,
    "hypernet-7850": hypernet_7850.study,
    "hypernet-10": hypernet_10.study,
}
