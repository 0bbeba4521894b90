"""`crystorus hull`, `predict`, `relax` and `rank` from their options to their files.

Options are checked before anything heavy is imported.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from crystal_fidelity.files import check_writable
from crystorus.data.compositions import Composition, expand
from crystorus.errors import CampaignError, RequestError
from crystorus.hull.compositions import choose_compositions, system_elements
from crystorus.hull.options import (
    HullOptions,
    PredictOptions,
    RankCommandOptions,
    RelaxOptions,
    check_potential_module,
)
from crystorus.runs.folder import REMEDY
from crystorus.sample.options import SampleOptions
from crystorus.sample.requests import default_folder
from crystorus.terminal import echo, log

if TYPE_CHECKING:
    from crystorus.crystal_model import CrystalModel


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
    check_writable(out, remedy=REMEDY)
    if not options.workers.scheduler:
        check_potential_module(relaxation.potential)

    from crystorus.hull import stages
    from crystorus.hull.candidates import plan_samples

    known = stages.load_references(sources, elements, out)
    held_out = stages.load_references(ranking.held_out, elements, out)
    stages.check_references(known, elements, relaxation, mix=ranking.mix_energy_levels)
    workers = stages.open_workers(options.workers, relaxation)
    samples = plan_samples(options.sampling, choice.compositions)
    space = {"system": "-".join(elements)} | asdict(options.compositions)
    settings = {"kind": "hull", "space": space}
    with stages.begin(out, settings, samples, relaxation, overwrite=options.overwrite) as campaign:
        stages.write_compositions(out, choice)
        charged = f" ({choice.n_charged} are not neutral)" if choice.n_charged else ""
        stages.sample_all(
            campaign,
            samples,
            ranking.animate,
            space["system"],
            f", of {len(choice.compositions)} compositions chosen from {choice.n_enumerated}"
            f"{charged}",
        )
        stages.import_references(campaign, known, mix=ranking.mix_energy_levels)
        stages.relax_all(campaign, workers, options.workers.batch, options.workers.minutes)
        stages.finish_ranked(campaign, known, held_out, elements, ranking)


def predict(
    *formulas: str,
    options: Annotated[PredictOptions, Parameter(name="*")] = PredictOptions(),  # noqa: B008
) -> None:
    """Sample, relax and rank crystals of given formulas.

    Writes what `hull` writes; without --references there is no hull, and energies are compared
    within a formula.

    Args:
        formulas: As in LiFePO4 "Ca(OH)2".
        options: How.

    Raises:
        RequestError: If there is nothing to sample.
        OutputError: If the folder holds another run.
        ReferencesError: If the references make no hull.
        CalculatorError: If the calculator cannot be had or computes nothing.
    """
    if not formulas:
        raise RequestError("no formula given: name one or several, as in LiFePO4")
    wanted = [unit for text in formulas for unit in expand(text, options.z or (1,))]
    elements = tuple(dict.fromkeys(symbol for unit in wanted for symbol in unit.elements))
    ranking, relaxation = options.ranking, options.relaxation
    if ranking.references or ranking.held_out:
        elements = system_elements("-".join(elements))
    if ranking.held_out and not ranking.references:
        raise RequestError("--held-out is looked for beside known phases: name --references too")
    asked = default_folder(formulas, SampleOptions())
    out = options.out or asked.with_name(f"predict-{asked.name}")
    check_writable(out, remedy=REMEDY)
    if not options.workers.scheduler:
        check_potential_module(relaxation.potential)

    from crystorus.hull import stages
    from crystorus.hull.candidates import plan_samples, suggest_units

    known = stages.load_references(ranking.references, elements, out)
    held_out = stages.load_references(ranking.held_out, elements, out)
    if ranking.references:
        stages.check_references(known, elements, relaxation, mix=ranking.mix_energy_levels)
    workers = stages.open_workers(options.workers, relaxation)

    def chosen(model: "CrystalModel") -> list[Composition]:
        if options.z:
            return wanted
        return [c for unit in wanted for c in suggest_units(unit, model)]

    samples = plan_samples(
        options.sampling,
        chosen,
        large=options.large,
        remedy="say --large to make it all the same, or ask for smaller cells (--z)",
    )
    system = "-".join(elements)
    settings = {"kind": "predict", "space": {"system": system}}
    with stages.begin(out, settings, samples, relaxation, overwrite=options.overwrite) as campaign:
        stages.sample_all(campaign, samples, ranking.animate, ", ".join(formulas))
        stages.import_references(campaign, known, mix=ranking.mix_energy_levels)
        stages.relax_all(campaign, workers, options.workers.batch, options.workers.minutes)
        stages.finish_ranked(campaign, known, held_out, elements, ranking)


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
    from crystorus.hull import stages
    from crystorus.hull.campaign import DATABASE, Campaign
    from crystorus.hull.candidates import GENERATED, structures_of
    from crystorus.hull.references import label_of

    relaxation = options.relaxation
    if (source / DATABASE).is_file():
        with Campaign.reopen(source) as campaign:
            campaign.trust_potential(relaxation.potential)
            workers = stages.open_workers(options.workers, campaign.relaxation)
            stages.relax_all(campaign, workers, options.workers.batch, options.workers.minutes)
            stages.finish_relaxed(campaign)
        return
    if options.out is None:
        raise CampaignError(f"--out is missing: name the folder where {source} is relaxed")
    check_writable(options.out, remedy=REMEDY)
    structures = list(structures_of(source, GENERATED, source.name))
    if not structures:
        raise CampaignError(f"{source} holds no structures: give at least one")
    if held := sum(bool(one.atoms.constraints) for one in structures):
        log("fixed", f"{held} structures fix atoms, which keep their fractional coordinates")
    workers = stages.open_workers(options.workers, relaxation)
    settings = {
        "kind": "relax",
        "source": {"label": label_of(source)},
        "keep_duplicates": options.keep_duplicates,
    }
    with stages.begin(
        options.out, settings, None, relaxation, overwrite=options.overwrite
    ) as campaign:
        campaign.add(structures)
        stages.screen_all(campaign, drop_duplicates=not options.keep_duplicates)
        stages.relax_all(campaign, workers, options.workers.batch, options.workers.minutes)
        stages.finish_relaxed(campaign)


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
    from crystorus.hull import stages
    from crystorus.hull.campaign import WAITING, Campaign
    from crystorus.hull.candidates import REFERENCE
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
    ranking = options.ranking
    stages.open_workers(options.workers, None)  # an unreachable scheduler is told at once
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
        known = stages.load_references(ranking.sources, elements, source)
        held_out = stages.load_references(ranking.held_out, elements, source)
        mix = ranking.mix_energy_levels
        stages.check_references(known, elements, campaign.relaxation, mix=mix)
        stages.import_references(campaign, known, mix=mix)
        campaign.set_aside()
        # Candidates that wait are left to `hull`, `predict` and `relax`.
        new = campaign.count(f"kind={REFERENCE},stage=relaxed,status={WAITING}")
        if new or ranking.phonons:
            campaign.trust_potential(options.potential)
        if new:
            workers = stages.open_workers(options.workers, campaign.relaxation)
            stages.relax_all(campaign, workers, options.workers.batch, 0.0)
        stages.finish_ranked(campaign, known, held_out, elements, ranking)


def _rank_entries(source: Path, options: RankCommandOptions) -> None:
    """Rank entries against the hull of the references, or of themselves where none are named."""
    from crystorus.hull.rank import ENTRY_COLUMNS, TABLE, rank_entries, write_table
    from crystorus.hull.references import is_entries_file, read_entries
    from crystorus.hull.stages import MOST_SHOWN, load_references

    out, ranking = options.out, options.ranking
    if out is None:
        raise CampaignError(f"--out is missing: name the folder for the table of {source}")
    if ranking.held_out:
        raise CampaignError("--held-out is matched by structure, entries have none: leave it out")
    if ranking.phonons:
        raise CampaignError("--phonons are of structures, entries have none: leave it out")
    if others := [name for name in ranking.references if not is_entries_file(Path(name))]:
        raise CampaignError(
            f"--references {others[0]} has structures, entries can only be compared with entries: "
            "name a .json file"
        )
    entries, warnings = read_entries(source)
    found = sorted({symbol for e in entries for symbol in e.composition.chemical_system_set})
    elements = system_elements(options.system or "-".join(found))
    entries = [e for e in entries if e.composition.chemical_system_set <= set(elements)]
    known = load_references(ranking.references, elements, out) if ranking.references else entries
    for warning in warnings:
        log("warning", warning)
    rows = rank_entries(entries, known, elements, mix=ranking.mix_energy_levels)
    write_table(out, ENTRY_COLUMNS, rows)
    echo("formula\tE above hull\tname")
    for row in rows[:MOST_SHOWN]:
        echo(f"{row['formula']}\t{float(row['e_above_hull']) + 0.0:+.3f} eV/atom\t{row['name']}")
    echo(f"entries: {len(rows)}, in {out / TABLE}")
