"""The registry of reproductions: name -> a study of a figure or table of the papers."""

from hypergrad_studies.papers import chaos
from hypergrad_studies.papers.results import Study

STUDIES: dict[str, Study] = {"chaos": chaos.study}
