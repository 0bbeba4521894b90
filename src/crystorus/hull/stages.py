"""The stages of a campaign: open it, read references, relax what waits, rank, write the report."""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crystal_fidelity.files import disk_errors, write_atomic
from crystal_fidelity.provenance import versions
from crystal_fidelity.workers import Workers, check
from crystorus.data.writers import csv_text
from crystorus.errors import CampaignError
from crystorus.hull.campaign import WAITING, Campaign
from crystorus.hull.candidates import (
    GENERATED,
    REFERENCE,
    UNSCREENED,
    VALID,
    InputStructure,
    Samples,
    sample,
    screen_structures,
)
from crystorus.hull.compositions import ChosenCompositions
from crystorus.hull.options import RankOptions, RelaxSettings, WorkerOptions
from crystorus.hull.potentials import energy_level, load_potential
from crystorus.hull.rank import CELL, TABLE, RankedPhase, Ranking, assess, write_ranking
from crystorus.hull.references import Known, check_levels, check_span, read_references
from crystorus.hull.report import REPORT, check_trajectories, write_report
from crystorus.hull.schedule import relax_waiting
from crystorus.terminal import counted, echo, log, log_versions, progress

PROGRAMS = (
    "crystorus", "torch", "numpy", "ase", "gemmi", "moyopy", "pymatgen", "chgnet", "sevenn",
    "spglib", "matplotlib", "distributed",
)  # fmt: skip
MOST_SHOWN = 25
_NOTES = ("rank", "e_above_hull", "space_group", "novelty", "known_id", "same_as")
_WORDS = ("formula", "space group", "novelty", "start", "name")  # to the left in a table


def begin(
    folder: Path,
    settings: Mapping[str, Any],
    samples: Samples | None,
    relaxation: RelaxSettings,
    *,
    overwrite: bool,
) -> Campaign:
    """Open or create a campaign; warn if programs have changed since it was begun.

    Args:
        folder: Of the campaign.
        settings: Its kind and what it is about.
        samples: What it makes; None if its structures are given.
        relaxation: How they are relaxed.
        overwrite: Replace another campaign.
    """
    sampling = {} if samples is None else {"sampling": samples.settings}
    level = energy_level(relaxation.potential, relaxation.pressure)
    described = {**settings, **sampling, "relaxation": asdict(relaxation), "level": level}
    campaign = Campaign(folder, described, versions(PROGRAMS), overwrite=overwrite)
    log_versions("campaign", campaign.changed_versions)
    return campaign


def sample_all(
    campaign: Campaign, samples: Samples, animate: Sequence[str], of: str, chosen_from: str = ""
) -> None:
    """Sample what the campaign does not hold yet, and screen it, with bars.

    Args:
        campaign: Where the crystals go.
        samples: What is made.
        animate: Names of candidates that must have a trajectory.
        of: The system or the formulas, for the line that says what is made.
        chosen_from: End of that line.
    """
    for warning in samples.warnings:
        log("warning", warning)
    guided = sum(request.start is not None for request in samples.requests)
    log(
        "plan",
        f"{counted(len(samples.requests), 'crystal')} of {of}, {guided} of them from templates"
        f"{chosen_from}",
    )
    with progress("sample") as update:
        sample(campaign, samples, update)
    check_trajectories(campaign.path, animate)
    screen_all(campaign, drop_duplicates=True)


def screen_all(campaign: Campaign, *, drop_duplicates: bool) -> None:
    """Screen the candidates, with a bar.

    Args:
        campaign: Holds them.
        drop_duplicates: Leave out what repeats another.
    """
    with progress("screen") as update:
        screen_structures(campaign, GENERATED, drop_duplicates=drop_duplicates, on_progress=update)


def open_workers(options: WorkerOptions, settings: RelaxSettings | None) -> Workers:
    """Return where jobs run, once a Dask scheduler has answered and the potential is there.

    Args:
        options: How many, or which scheduler.
        settings: Name the potential, which need not be installed here to run on a cluster; None
            if it is not known yet.
    """
    # A potential may take its process with it: one worker is a process of its own too.
    workers = Workers(options.workers, options.scheduler or "", isolated=options.workers > 0)
    check(workers)
    if settings is not None and not workers.scheduler:
        load_potential(settings.potential)
    return workers


def load_references(names: Sequence[str], elements: Sequence[str], folder: Path) -> list[Known]:
    """Read known phases; say what could not be read of them.

    Args:
        names: Files, or materials-project.
        elements: Symbols of the system.
        folder: Of the campaign, where answers of an API are kept.
    """
    found, warnings = read_references(names, elements, folder / "references")
    for warning in warnings:
        log("warning", warning)
    return found


def check_references(
    known: Sequence[Known], elements: Sequence[str], settings: RelaxSettings, *, mix: bool
) -> None:
    """Refuse references that make no hull, or of another level, before hours of relaxation.

    Args:
        known: The references.
        elements: Symbols of the system.
        settings: Name the potential.
        mix: Allow several levels of energies.

    Raises:
        ReferencesError: Naming what is missing, or the levels.
    """
    check_span((phase.composition for phase in known), elements, "the references")
    levels = {phase.level for phase in known if phase.atoms is None}
    check_levels(levels | {settings.potential}, mix=mix)


def import_references(campaign: Campaign, known: Sequence[Known], *, mix: bool) -> None:
    """Take the structures of known phases into a campaign, and screen them.

    Where energies may be mixed, those that come with an energy keep it and are not relaxed.

    Args:
        campaign: Takes them.
        known: The references.
        mix: Allow several levels of energies.
    """
    structures = [
        InputStructure(p.row, REFERENCE, p.atoms, UNSCREENED, p.source, details={"id": p.name})
        for p in known
        if p.atoms is not None and not (mix and p.energy_per_atom is not None)
    ]
    campaign.add(structures)
    screen_structures(campaign, REFERENCE, drop_duplicates=False)


def relax_all(
    campaign: Campaign, workers: Workers, batch: int, minutes: float | None = None
) -> None:
    """Relax what waits, with a bar.

    Args:
        campaign: Holds what waits.
        workers: Where relaxations run.
        batch: Structures per call of the potential.
        minutes: In which candidates are begun; None for all of them, 0 for known phases alone.
    """
    campaign.set_aside()
    limit = math.inf if minutes is None else minutes
    with progress("relax") as update:
        relax_waiting(campaign, workers, update, batch=batch, minutes=limit)


def _finish(campaign: Campaign) -> None:
    """Mark a campaign complete, or say what waits."""
    if waiting := campaign.count(f"stage=relaxed,status={WAITING}"):
        log(
            "waiting",
            f"{counted(waiting, 'structure')} not relaxed yet: the command that began the campaign "
            f"goes on, as does `crystorus relax {campaign.path}`",
        )
    else:
        campaign.finish()


def finish_relaxed(campaign: Campaign) -> None:
    """End a campaign that is not ranked; print what became of its structures.

    Args:
        campaign: Whose structures are relaxed.

    Raises:
        CampaignError: If none of them was fit to be relaxed.
    """
    statuses = Counter(row.status for row in campaign.relaxed(GENERATED))
    if not statuses:
        first = campaign.originals(GENERATED)[0]
        raise CampaignError(
            f"no structure of {campaign.path} is fit to be relaxed ({first.name}: {first.reason}); "
            f"`ase db {campaign.database} -c name,status,reason` has the others"
        )
    listed = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))
    _finish(campaign)
    log("done", f"{listed}, in {campaign.database}")


def finish_ranked(
    campaign: Campaign,
    known: Sequence[Known],
    held_out: Sequence[Known],
    elements: Sequence[str],
    options: RankOptions,
) -> None:
    """Rank, and write the table, CIFs, notes in the database, plots and report.

    Args:
        campaign: Whose structures are relaxed.
        known: The references; none for no hull.
        held_out: Phases to find that are not on the hull.
        elements: Symbols of the system.
        options: How it is ranked and reported.

    Raises:
        CampaignError: If no candidate could be relaxed.
    """
    ranking = assess(
        campaign,
        known,
        elements,
        mix=options.mix_energy_levels,
        held_out=held_out,
        symprec=options.symprec,
    )
    if options.phonons:
        from crystorus.hull.phonons import with_phonons

        ranking = with_phonons(ranking, options.phonons, campaign.relaxation)
    write_ranking(campaign.path, ranking, options.symprec)
    if not any(phase.energy_per_atom is not None for phase in ranking.phases):
        fates = {row.status for row in campaign.originals(GENERATED)} - {VALID}
        fates |= {phase.status for phase in ranking.phases}
        raise CampaignError(
            f"none of {ranking.counts['generated']} candidates came through "
            f"({', '.join(sorted(fates))}): `ase db {campaign.database} -c name,status,reason` "
            "says why; raise --budget or --n in another --out, or try another --potential"
        )
    remarks: dict[int, dict[str, str | float]] = {}
    for place, phase in enumerate(ranking.phases, start=1):
        if phase.energy_per_atom is not None:
            remarks[phase.row] = {"rank": place, "space_group": phase.space_group[0]}
        if phase.e_above_hull is not None and phase.novelty is not None:
            remarks[phase.row] |= {
                "e_above_hull": phase.e_above_hull,
                "novelty": phase.novelty.verdict,
                **({"known_id": phase.novelty.id} if phase.novelty.id else {}),
            }
    remarks |= {row: {"same_as": name} for row, name in ranking.duplicates.items()}
    campaign.note(remarks, _NOTES)
    if options.report:
        ranked_with: dict[str, Any] = {
            "references": list(options.sources if known else ()),
            "held_out": list(options.held_out),
            "mix_energy_levels": options.mix_energy_levels,
            "symprec": options.symprec,
        }
        write_report(
            campaign.path,
            ranking,
            settings=campaign.settings | {"ranking": ranked_with},
            versions=campaign.versions,
            animate=options.animate,
        )
    _finish(campaign)
    show_ranking(ranking)
    log("done", f"{campaign.path / (REPORT if options.report else TABLE)}")


def write_compositions(folder: Path, chosen: ChosenCompositions) -> None:
    """Write the compositions of a campaign in the order in which its budget is spent.

    Args:
        folder: Of the campaign.
        chosen: The compositions.
    """
    rows = [
        {
            "formula": c.formula,
            "reduced_formula": c.reduced_formula,
            "formula_units": str(c.formula_units),
            "n_atoms": str(c.n_atoms),
        }
        for c in chosen.compositions
    ]
    with disk_errors(folder):
        write_atomic(folder / "compositions.csv", csv_text(list(rows[0]), rows))


def show_ranking(ranking: Ranking) -> None:
    """Print the best phases and the figures of the campaign.

    Args:
        ranking: Of the campaign.
    """
    ranked = [phase for phase in ranking.phases if phase.energy_per_atom is not None]
    rows = [_shown(phase) for phase in ranked[:MOST_SHOWN]]
    if sys.stdout.isatty() and rows:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in rows[0]:
            table.add_column(name, justify="left" if name in _WORDS else "right")
        for row in rows:
            table.add_row(*row.values())
        if len(ranked) > MOST_SHOWN:
            table.caption = f"… and {len(ranked) - MOST_SHOWN} more in the table"
        Console().print(table)
    else:
        for line in [rows[0], *map(dict.values, rows)] if rows else []:
            echo("\t".join(line))
    echo(", ".join(f"{name}: {n}" for name, n in ranking.counts.items()))


def _shown(phase: RankedPhase) -> dict[str, str]:
    verdict = f"{phase.novelty.verdict} {phase.novelty.id}".strip() if phase.novelty else ""
    if phase.held_out:
        verdict += f"; held-out {phase.held_out}"
    begun = {"found": str(phase.found), "start": phase.start, "name": phase.name}
    if phase.e_above_hull is None:
        record = phase.record
        cell = " ".join(f"{record[n]:.3f}" for n in CELL[:3])
        angles = " ".join(f"{record[n]:.1f}" for n in CELL[3:])
        return {
            "formula": phase.formula,
            "above lowest": f"{_signed(phase.e_above_lowest)} eV/atom",
            "energy": f"{phase.energy_per_atom:.3f} eV/atom",
            "space group": phase.space_group[0],
            "a b c / Å": cell,
            "α β γ / °": angles,
            "Å³/atom": f"{record['volume_per_atom']:.2f}",
            **begun,
        }
    return {
        "formula": phase.formula,
        "E above hull": f"{_signed(phase.e_above_hull)} eV/atom",
        "space group": phase.space_group[0],
        "volume": f"{phase.volume_change or 0.0:+.1%}",
        "novelty": verdict,
        **begun,
    }


def _signed(energy: float | None) -> str:
    return f"{round(energy or 0.0, 3) + 0.0:+.3f}"
