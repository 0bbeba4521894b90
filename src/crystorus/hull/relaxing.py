"""The relaxation stage: every waiting row of a campaign, wherever the workers are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crystorus.hull.calculators import energy_level
from crystorus.hull.errors import CalculatorError
from crystorus.hull.relaxation import RelaxJob, RelaxOutcome, RelaxSettings, relax
from crystorus.hull.screening import ScreenLimits
from crystorus.hull.state import WAITING, Campaign
from crystorus.hull.workers import Lost, Workers, run_jobs

_NO_FAITH = 10  # structures in a row, from the first, that a calculator may throw on
_THROWN = ("failed", "lost worker")


@dataclass(frozen=True)
class RelaxProgress:
    """How far the stage is."""

    done: int
    total: int


def settings_of(campaign: Campaign) -> RelaxSettings:
    """Return how a campaign relaxes."""
    stored: dict[str, Any] = dict(campaign.settings["relaxation"])
    return RelaxSettings(**(stored | {"screen": ScreenLimits(**stored["screen"])}))


def relax_waiting(
    campaign: Campaign,
    workers: Workers,
    on_progress: Callable[[RelaxProgress], None] = lambda progress: None,
) -> float:
    """Relax what waits, each outcome committed as it comes; return the seconds it took.

    As long as a calculator has thrown on everything, nothing is recorded: the structures are not
    to blame, and wait for a calculator that works.

    Raises:
        CalculatorError: If it cannot be had, or throws on all of the first structures.
        WorkersError: If the workers cannot be had.
    """
    began = time.monotonic()
    settings = settings_of(campaign)
    level = energy_level(settings.calculator)
    jobs = [RelaxJob(row.id, row.toatoms(), settings) for row in campaign.waiting()]
    finished = campaign.count(f"stage=relaxed,status!={WAITING}")
    total, held = finished + len(jobs), list[RelaxOutcome]()
    proven = finished > 0
    on_progress(RelaxProgress(finished, total))
    for number, result in run_jobs(relax, jobs, workers):
        outcome = _lost(jobs[number], result) if isinstance(result, Lost) else result
        held.append(outcome)
        proven = proven or outcome.status not in _THROWN
        if proven:
            campaign.record(held, level)
            finished += len(held)
            held = []
        elif len(held) >= _NO_FAITH:
            break
        on_progress(RelaxProgress(finished, total))
    if held:
        raise CalculatorError(
            f"--calculator {settings.calculator} failed on all of the first {len(held)} "
            f"structures, the first time with: {held[0].reason}. Nothing of this was recorded; "
            "mend it and run the same command again"
        )
    return time.monotonic() - began


def _lost(job: RelaxJob, lost: Lost) -> RelaxOutcome:
    return RelaxOutcome(job.id, "lost worker", lost.reason, job.atoms, 0, 0.0, 0.0)
