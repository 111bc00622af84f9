"""The model that a job trains: the table that its choice means, as its label assignment needs it."""

from __future__ import annotations

from yolofleet.errors import UserError
from yolofleet.models.zoo import resolve, zoo_names, zoo_table
from yolofleet.specs.assignment import ASSIGNERS
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelTable


def trained_table(job: JobSpec) -> ModelTable:
    """Return the table of the model as it is trained.

    With an assigner that does not use the auxiliary heads (``none``) they are not built at all: nothing would teach
    them, and a parameter without gradient is one that workers would wait for in vain.

    Raises:
        UserError: The model is not known, or the assigner needs auxiliary heads that it does not have.
    """
    table = resolve(job.model)
    assigner = job.assignment.assigner
    chosen = ASSIGNERS[assigner or "coarse_to_fine"]
    if not chosen.uses_auxiliary:
        table = table.model_copy(update={"auxiliary": None})
    if job.assignment.constraint and (table.auxiliary is None or not chosen.has_coarse_set):
        guide = assigner or "none"
        raise UserError(
            f"assignment.constraint caps cells that only the coarse set holds, and assigner {guide} has no coarse set; "
            "use assigner coarse_to_fine with a model that has auxiliary heads, or leave the constraint off"
        )
    if assigner is not None and chosen.uses_auxiliary and table.auxiliary is None:
        able = [name for name in zoo_names() if zoo_table(name).auxiliary is not None]
        without = " (model.auxiliary is none)" if job.model.auxiliary == "none" else ""
        raise UserError(
            f"assignment.assigner {assigner} needs auxiliary heads, and {table.name} has none{without}; use assigner "
            f"none, or a model that has them: {', '.join(able)}"
        )
    return table
