"""The doctor: whether exact hypergradients can be trusted on this machine.

Its parts are the machine and its settings (`machine`), random training runs of several kinds (`kinds`, `settings`) that
are run backwards to the bit (`reversals`), their gradients beside float64 (`gradients`), and time and memory (`costs`).
`findings` puts them together, and `report` shows what was found.
"""

from hypergrad_studies.doctor.findings import Findings, examine
from hypergrad_studies.doctor.report import markdown, tables, verdict

__all__ = ["Findings", "examine", "markdown", "tables", "verdict"]
