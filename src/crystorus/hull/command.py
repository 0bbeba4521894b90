"""`crystorus hull`, `relax` and `rank` from their options to their files."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crystal_fidelity.files import disk_errors, write_atomic
from crystal_fidelity.provenance import versions as program_versions
from crystal_fidelity.workers import Workers, check
from crystorus.errors import CampaignError
from crystorus.hull.compositions import Choice, choose_compositions, system_elements
from crystorus.hull.options import (
    HullOptions,
    RankCommandOptions,
    RankOptions,
    RelaxOptions,
    RelaxSettings,
    WorkerOptions,
    check_calculator_module,
)
from crystorus.terminal import echo, log, log_versions, progress

if TYPE_CHECKING:
    from crystorus.hull.campaign import Campaign
    from crystorus.hull.rank import RankedPhase, Ranking
    from crystorus.hull.references import Known

PROGRAMS = (
    "crystorus", "torch", "numpy", "ase", "gemmi", "moyopy", "pymatgen", "chgnet", "spglib",
    "matplotlib", "distributed",
)  # fmt: skip
_SHOWN = 25
_NOTES = ("rank", "e_above_hull", "space_group", "novelty", "known_id", "same_as")


def hull(
    system: str,
    /,
    *,
    options: Annotated[HullOptions, Parameter(name="*")] = HullOptions(),  # noqa: B008 - frozen
) -> None:
    """Go from a chemical system to relaxed phases on a convex hull.

    Writes campaign.db (ASE), table.csv, CIFs by composition, hull.svg, hull.png and report.html.

    Args:
        system: A chemical system, as in Li-Fe-O.
        options: How.

    Raises:
        RequestError: If there is nothing to sample.
        ReadingError: If the library of templates cannot be opened.
        OutputError: If the folder holds another run.
        ReferencesError: If there is no hull to compare with.
        CalculatorError: If the calculator cannot be had or computes nothing.
    """
    elements = system_elements(system)
    out = options.out or Path("out") / f"hull-{'-'.join(elements)}"
    sources, ranking, relaxation = options.ranking.sources, options.ranking, options.relaxation
    choice = choose_compositions(system, options.compositions)
    if not options.workers.scheduler:
        check_calculator_module(relaxation.calculator)

    from crystorus.hull.candidates import GENERATED, plan_samples, sample, screen_structures
    from crystorus.hull.relax import energy_level
    from crystorus.hull.report import check_trajectories

    workers = _workers(options.workers)
    known = _references(sources, elements, out)
    held_out = _references(ranking.held_out, elements, out)
    _check_references(known, elements, relaxation, mix=ranking.mix_energy_levels)
    _check_calculator(relaxation, workers)
    samples = plan_samples(options.sampling, choice.compositions)
    for warning in samples.warnings:
        log("warning", warning)
    system = "-".join(elements)
    settings = {
        "kind": "hull",
        "space": {"system": system} | asdict(options.compositions),
        "sampling": samples.settings,
        "relaxation": asdict(relaxation),
        "level": energy_level(relaxation.calculator),
    }
    with _begin(out, settings, overwrite=options.overwrite) as campaign:
        _write_compositions(out, choice)
        charged = f" ({choice.n_charged} are not neutral)" if choice.n_charged else ""
        guided = sum(request.start is not None for request in samples.requests)
        log(
            "plan",
            f"{len(samples.requests)} crystals of {system}, {guided} of them from templates, of "
            f"{len(choice.compositions)} compositions chosen from {choice.n_enumerated}{charged}",
        )
        with progress("sample") as update:
            sample(campaign, samples, update)
        check_trajectories(out, ranking.animate)
        with progress("screen") as update:
            screen_structures(campaign, GENERATED, drop_duplicates=True, on_progress=update)
        _import_references(campaign, known, mix=ranking.mix_energy_levels)
        _relax(campaign, workers)
        _finish(campaign, known, held_out, elements, ranking)


def relax(
    source: Path,
    /,
    *,
    options: Annotated[RelaxOptions, Parameter(name="*")] = RelaxOptions(),  # noqa: B008 - frozen
) -> None:
    """Screen and relax structures into an ASE database.

    Args:
        source: CSV, CIFs, extxyz, POSCAR, ASE database, or the folder of a campaign.
        options: How.

    Raises:
        ReadingError: If the source cannot be read.
        CampaignError: If nothing is fit to be relaxed.
        OutputError: If the folder holds another run.
        CalculatorError: If the calculator cannot be had or computes nothing.
    """
    from crystorus.hull.campaign import DATABASE, Campaign
    from crystorus.hull.candidates import (
        GENERATED,
        import_structures,
        screen_structures,
        structures_of,
    )
    from crystorus.hull.references import label_of
    from crystorus.hull.relax import energy_level

    workers, relaxation = _workers(options.workers), options.relaxation
    if (source / DATABASE).is_file():
        with Campaign.reopen(source) as campaign:
            campaign.trust_calculator(relaxation.calculator)
            _check_calculator(campaign.relaxation, workers)
            _relax(campaign, workers)
            _show_relaxed(campaign)
            campaign.finish()
        return
    if options.out is None:
        raise CampaignError(f"--out is missing: name the folder where {source} is relaxed")
    structures = list(structures_of(source, GENERATED, source.name))
    if not structures:
        raise CampaignError(f"{source} holds no structures: give at least one")
    _check_calculator(relaxation, workers)
    settings = {
        "kind": "relax",
        "source": {"label": label_of(source)},
        "keep_duplicates": options.keep_duplicates,
        "relaxation": asdict(relaxation),
        "level": energy_level(relaxation.calculator),
    }
    with _begin(options.out, settings, overwrite=options.overwrite) as campaign:
        import_structures(campaign, structures, GENERATED)
        with progress("screen") as update:
            screen_structures(
                campaign,
                GENERATED,
                drop_duplicates=not options.keep_duplicates,
                on_progress=update,
            )
        _relax(campaign, workers)
        _show_relaxed(campaign)
        campaign.finish()


def rank(
    source: Path,
    /,
    *,
    options: Annotated[RankCommandOptions, Parameter(name="*")] = RankCommandOptions(),  # noqa: B008
) -> None:
    """Rank relaxed structures on a convex hull; plots and report.

    Args:
        source: Folder of a campaign, or pymatgen entries (.json, .json.gz).
        options: How.

    Raises:
        CampaignError: If it is neither, or --out is missing or of no use.
        ReferencesError: If there is no hull to compare with.
    """
    from crystorus.hull.campaign import Campaign
    from crystorus.hull.rank import candidate_elements
    from crystorus.hull.references import is_entries_file

    if is_entries_file(source):
        _rank_entries(source, options)
        return
    if options.out is not None:
        raise CampaignError(f"--out {options.out} goes with a file of entries only: leave it out")
    if not source.is_dir():
        raise CampaignError(
            f"{source} is no folder of a campaign: give one that `crystorus hull` or `crystorus "
            "relax` wrote"
        )
    ranking, workers = options.ranking, _workers(options.workers)
    with Campaign.reopen(source) as campaign:
        found = candidate_elements(campaign)
        system = options.system or campaign.settings.get("space", {}).get("system", "-".join(found))
        if not system:
            raise CampaignError(f"{source} holds no valid structure: there is nothing to rank")
        elements = system_elements(system)
        if outside := set(found) - set(elements):
            raise CampaignError(
                f"{source} holds {min(outside)}, which is not in {system}: correct --system"
            )
        known = _references(ranking.sources, elements, source)
        held_out = _references(ranking.held_out, elements, source)
        _check_references(known, elements, campaign.relaxation, mix=ranking.mix_energy_levels)
        _import_references(campaign, known, mix=ranking.mix_energy_levels)
        if campaign.set_aside():
            campaign.trust_calculator(options.calculator)
            _check_calculator(campaign.relaxation, workers)
            _relax(campaign, workers)
        _finish(campaign, known, held_out, elements, ranking)


def _rank_entries(source: Path, options: RankCommandOptions) -> None:
    """Rank entries against the hull of the references, or of themselves where none are named."""
    from crystorus.hull.rank import ENTRY_COLUMNS, TABLE, rank_entries, write_table
    from crystorus.hull.references import is_entries_file, read_entries

    out, ranking = options.out, options.ranking
    if out is None:
        raise CampaignError(f"--out is missing: name the folder for the table of {source}")
    if ranking.held_out:
        raise CampaignError("--held-out is matched by structure, entries have none: leave it out")
    if others := [name for name in ranking.references if not is_entries_file(Path(name))]:
        raise CampaignError(
            f"--references {others[0]} has structures, entries can only be compared with entries: "
            "name a .json file"
        )
    entries, warnings = read_entries(source)
    found = sorted({symbol for e in entries for symbol in e.composition.chemical_system_set})
    elements = system_elements(options.system or "-".join(found))
    entries = [e for e in entries if e.composition.chemical_system_set <= set(elements)]
    known = _references(ranking.references, elements, out) if ranking.references else entries
    for warning in warnings:
        log("warning", warning)
    rows = rank_entries(entries, known, elements, mix=ranking.mix_energy_levels)
    write_table(out, ENTRY_COLUMNS, rows)
    for row in rows[:_SHOWN]:
        echo(f"{row['formula']}\t{float(row['e_above_hull']) + 0.0:+.3f} eV\t{row['name']}")
    echo(f"{len(rows)} entries in {out / TABLE}")


# The stages


def _begin(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> "Campaign":
    from crystorus.hull.campaign import Campaign

    campaign = Campaign(folder, settings, program_versions(PROGRAMS), overwrite=overwrite)
    log_versions("campaign", campaign.changed_versions)
    return campaign


def _workers(options: WorkerOptions) -> Workers:
    """Return where jobs run, once a Dask scheduler has answered."""
    # A potential may take its process with it: one worker is a process of its own too.
    workers = Workers(options.workers, options.scheduler or "", isolated=options.workers > 0)
    check(workers)
    return workers


def _check_calculator(settings: RelaxSettings, workers: Workers) -> None:
    from crystorus.hull.relax import load_calculator

    if not workers.scheduler:  # on a cluster it need not be installed here
        load_calculator(settings.calculator)


def _references(names: Sequence[str], elements: Sequence[str], folder: Path) -> list["Known"]:
    from crystorus.hull.references import read_references

    found = read_references(names, elements, folder / "references")
    for warning in found.warnings:
        log("warning", warning)
    return list(found.phases)


def _check_references(
    known: Sequence["Known"], elements: Sequence[str], settings: RelaxSettings, *, mix: bool
) -> None:
    """Refuse references that make no hull, or of another level, before hours of relaxation."""
    from crystorus.hull.references import check_levels, check_span
    from crystorus.hull.relax import energy_level

    check_span((phase.composition for phase in known), elements, "the references")
    levels = {phase.level for phase in known if phase.atoms is None}
    check_levels(levels | {energy_level(settings.calculator)}, mix=mix)


def _import_references(campaign: "Campaign", known: Sequence["Known"], *, mix: bool) -> None:
    from crystorus.hull.candidates import (
        REFERENCE,
        UNSCREENED,
        InputStructure,
        import_structures,
        screen_structures,
    )

    # Where energies may be mixed, those that come with an energy keep it and are not relaxed.
    structures = (
        InputStructure(p.row, REFERENCE, p.atoms, UNSCREENED, p.source, details={"id": p.name})
        for p in known
        if p.atoms is not None and not (mix and p.energy_per_atom is not None)
    )
    import_structures(campaign, structures, REFERENCE)
    screen_structures(campaign, REFERENCE, drop_duplicates=False)


def _relax(campaign: "Campaign", workers: Workers) -> None:
    from crystorus.hull.campaign import relax_waiting

    campaign.set_aside()
    with progress("relax") as update:
        relax_waiting(campaign, workers, update)


def _finish(
    campaign: "Campaign",
    known: Sequence["Known"],
    held_out: Sequence["Known"],
    elements: Sequence[str],
    options: RankOptions,
) -> None:
    """Rank, and write the table, CIFs, notes in the database, plots and report."""
    from crystorus.hull.candidates import GENERATED, VALID
    from crystorus.hull.rank import TABLE, assess, write_ranking
    from crystorus.hull.report import REPORT, write_report

    ranking = assess(
        campaign,
        known,
        elements,
        mix=options.mix_energy_levels,
        held_out=held_out,
        symprec=options.symprec,
    )
    write_ranking(campaign.path, ranking, options.symprec)
    if not any(phase.e_above_hull is not None for phase in ranking.phases):
        fates = {row.status for row in campaign.originals(GENERATED)} - {VALID}
        fates |= {phase.status for phase in ranking.phases}
        raise CampaignError(
            f"none of {ranking.counts['generated']} candidates came through "
            f"({', '.join(sorted(fates))}): `ase db {campaign.database} -c name,status,reason` "
            "says why; raise --budget in another --out, or try another --calculator"
        )
    remarks: dict[int, dict[str, str | float]] = {}
    for place, phase in enumerate(ranking.phases, start=1):
        if phase.e_above_hull is not None and phase.novelty is not None:
            remarks[phase.row] = {
                "rank": place,
                "e_above_hull": phase.e_above_hull,
                "space_group": phase.space_group[0],
                "novelty": phase.novelty.verdict,
                **({"known_id": phase.novelty.id} if phase.novelty.id else {}),
            }
    remarks |= {row: {"same_as": name} for row, name in ranking.duplicates.items()}
    campaign.note(remarks, _NOTES)
    if options.report:
        ranked_with: dict[str, Any] = {
            "references": list(options.sources),
            "held_out": list(options.held_out),
        }
        ranked_with |= {"mix_energy_levels": options.mix_energy_levels, "symprec": options.symprec}
        write_report(
            campaign.path,
            ranking,
            settings=campaign.settings | {"ranking": ranked_with},
            versions=campaign.versions,
            animate=options.animate,
        )
    campaign.finish()
    show_ranking(ranking)
    log("done", f"{campaign.path / (REPORT if options.report else TABLE)}")


def _write_compositions(folder: Path, choice: Choice) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["formula", "reduced_formula", "formula_units", "n_atoms"])
    for c in choice.compositions:
        writer.writerow([c.formula, c.reduced_formula, c.formula_units, c.n_atoms])
    with disk_errors(folder):
        write_atomic(folder / "compositions.csv", text.getvalue())


def _show_relaxed(campaign: "Campaign") -> None:
    from crystorus.hull.candidates import GENERATED

    statuses = Counter(row.status for row in campaign.relaxed(GENERATED))
    if not statuses:
        raise CampaignError(
            f"no structure of {campaign.path} is fit to be relaxed: `ase db {campaign.database} "
            "-c name,status,reason` says why"
        )
    listed = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))
    log("done", f"{listed}, in {campaign.database}")


def show_ranking(ranking: "Ranking") -> None:
    """Print the best phases and the figures of the campaign."""
    ranked = [phase for phase in ranking.phases if phase.energy_per_atom is not None]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        numbers = ("E above hull", "volume", "found")
        for name in ("formula", "E above hull", "space group", "volume", "novelty", "found",
                     "start", "name"):  # fmt: skip
            table.add_column(name, justify="right" if name in numbers else "left")
        for phase in ranked[:_SHOWN]:
            table.add_row(*_cells(phase))
        if len(ranked) > _SHOWN:
            table.caption = f"… and {len(ranked) - _SHOWN} more in the table"
        Console().print(table)
    else:
        for phase in ranked[:_SHOWN]:
            echo("\t".join(_cells(phase)))
    echo(", ".join(f"{name}: {n}" for name, n in ranking.counts.items()))


def _cells(phase: "RankedPhase") -> tuple[str, ...]:
    verdict = f"{phase.novelty.verdict} {phase.novelty.id}".strip() if phase.novelty else ""
    if phase.held_out:
        verdict += f"; held-out {phase.held_out}"
    return (
        phase.formula,
        f"{(phase.e_above_hull or 0.0) + 0.0:+.3f} eV",
        phase.space_group[0],
        f"{phase.volume_change or 0.0:+.1%}",
        verdict,
        str(phase.found),
        phase.start,
        phase.name,
    )
