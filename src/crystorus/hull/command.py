"""`crystorus hull`, `relax` and `rank` from their options to their files."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crystorus.data.compositions import symbol_of
from crystorus.data.files import write_whole
from crystorus.hull.assessing import Ranking, assess, candidate_elements
from crystorus.hull.calculators import energy_level, load_calculator
from crystorus.hull.candidates import generated_structures, import_originals, structures_of
from crystorus.hull.display import show_ranking, stage_progress
from crystorus.hull.entries import rank_entries
from crystorus.hull.enumeration import Choice, check_system, choose_compositions
from crystorus.hull.errors import CampaignError
from crystorus.hull.orders import HullOrder, RankOrder, RelaxOrder
from crystorus.hull.outputs import PHASES, SUMMARY, SYMMETRISED, TABLE, write_phases, write_table
from crystorus.hull.references import (
    Known,
    Source,
    check_levels,
    check_span,
    default_sources,
    is_entries_file,
    label_of,
    read_sources,
)
from crystorus.hull.relaxation import RelaxSettings
from crystorus.hull.relaxing import RelaxProgress, relax_waiting, settings_of
from crystorus.hull.report import check_films
from crystorus.hull.sampling import FOLDER, plan_sampling, sample
from crystorus.hull.state import (
    DATABASE,
    GENERATED,
    REFERENCE,
    VALID,
    Campaign,
    Original,
    remove_campaign,
)
from crystorus.hull.workers import Workers, check_workers
from crystorus.sample.disk import disk_errors
from crystorus.sample.folder import TRAJECTORIES
from crystorus.sample.run import program_versions
from crystorus.terminal import say, tell_of_versions

COMPOSITIONS = "compositions.csv"
REFERENCES = "references"
PLOT, REPORT = "hull", "report.html"
FILES = (
    DATABASE, f"{DATABASE}-journal", FOLDER, COMPOSITIONS, TABLE, SUMMARY, PHASES,
    SYMMETRISED, f"{PLOT}.svg", f"{PLOT}.png", REPORT,
)  # fmt: skip
_PROGRAMS = ("pymatgen", "chgnet", "spglib", "matplotlib", "distributed")


def hull(order: HullOrder) -> Ranking:
    """Sample a chemical system, relax what comes, rank it.

    Raises:
        SpaceError: If there is nothing to sample.
        ReadingError: If the library of templates cannot be opened.
        CampaignError: If the folder holds another campaign.
        ReferencesError: If there is no hull to compare with.
        CalculatorError: If the calculator cannot be had or computes nothing.
    """
    elements = [symbol_of(z) for z in check_system(order.space.system)]
    space = replace(order.space, system="-".join(elements))
    choice = choose_compositions(space)
    sources = _sources(order.rank, elements, order.out)
    check_span((p.composition for s in sources for p in s.phases), elements, "the references")
    held_out = _held_out(order.rank.held_out, elements, order.out)
    _check_level_of(order.relaxation, sources, mix=order.rank.mix_energy_levels)
    _check_calculator(order.relaxation, order.workers)
    run = plan_sampling(order.sampling, choice.compositions)
    for warning in run.warnings:
        say("warning", warning)
    settings = {
        "kind": "hull",
        "space": asdict(space),
        "sampling": run.settings,
        "relaxation": asdict(order.relaxation),
        "level": energy_level(order.relaxation.calculator),
    }
    with _begin(order.out, settings, overwrite=order.overwrite) as campaign:
        _write_compositions(order.out, choice)
        say("plan", f"{len(run.job.requests)} crystals of {space.system}, {_of(choice)}")
        with stage_progress("sample") as move:
            sample(run, order.sampling, order.out / FOLDER, lambda p: move(p.done, p.total))
        check_films(order.out / FOLDER / TRAJECTORIES, order.rank.animate)
        made = generated_structures(order.out / FOLDER)
        _screen(campaign, made, len(run.job.requests), drop_duplicates=True)
        _import_references(campaign, sources, mix=order.rank.mix_energy_levels)
        _relax(campaign, order.workers)
        return _finish(campaign, sources, held_out, elements, order.rank)


def relax_structures(order: RelaxOrder) -> None:
    """Screen and relax the structures of a file, or what waits in a campaign.

    Raises:
        ReadingError: If the source cannot be read.
        CampaignError: If the folder holds another campaign.
        CalculatorError: If the calculator cannot be had or computes nothing.
    """
    if (order.source / DATABASE).is_file():
        with Campaign.reopen(order.source) as campaign:
            _check_calculator(settings_of(campaign), order.workers)
            _relax(campaign, order.workers)
            _show_relaxed(campaign)
        return
    if order.out is None:
        raise CampaignError(f"--out is missing: name the folder where {order.source} is relaxed")
    originals = list(structures_of(order.source, GENERATED, order.source.name))
    if not originals:
        raise CampaignError(f"{order.source} holds no structures: give at least one")
    _check_calculator(order.relaxation, order.workers)
    settings = {
        "kind": "relax",
        "source": {"label": label_of(order.source)},
        "keep_duplicates": order.keep_duplicates,
        "relaxation": asdict(order.relaxation),
        "level": energy_level(order.relaxation.calculator),
    }
    with _begin(order.out, settings, overwrite=order.overwrite) as campaign:
        _screen(campaign, originals, len(originals), drop_duplicates=not order.keep_duplicates)
        _relax(campaign, order.workers)
        _show_relaxed(campaign)


def rank(
    source: Path, system: str | None, out: Path | None, order: RankOrder, workers: Workers
) -> None:
    """Rank a campaign's folder, or a file of entries.

    Raises:
        CampaignError: If it is neither, or --out is missing or of no use.
        ReferencesError: If there is no hull to compare with.
    """
    if is_entries_file(source):
        rank_entries(source, system, out, order)
        return
    if out is not None:
        raise CampaignError(f"--out {out} goes with a file of entries only: leave it out")
    rank_campaign(source, system, order, workers)


def rank_campaign(folder: Path, system: str | None, order: RankOrder, workers: Workers) -> Ranking:
    """Rank the relaxed structures of a campaign, relaxing references that are new to it.

    Raises:
        CampaignError: If the folder holds no campaign, or nothing relaxed.
        ReferencesError: If there is no hull to compare with.
    """
    if not folder.is_dir():
        raise CampaignError(
            f"{folder} is no folder of a campaign: give one that `crystorus hull` or `crystorus "
            "relax` wrote"
        )
    with Campaign.reopen(folder) as campaign:
        elements = _elements(campaign, system)
        sources = _sources(order, elements, folder)
        held_out = _held_out(order.held_out, elements, folder)
        mix = order.mix_energy_levels
        check_span((p.composition for s in sources for p in s.phases), elements, "the references")
        _check_level_of(settings_of(campaign), sources, mix=mix)
        _import_references(campaign, sources, mix=mix)
        if campaign.set_aside():
            _check_calculator(settings_of(campaign), workers)
            _relax(campaign, workers)
        return _finish(campaign, sources, held_out, elements, order)


def _begin(folder: Path, settings: dict[str, Any], *, overwrite: bool) -> Campaign:
    if overwrite:
        remove_campaign(folder, FILES)
    campaign = Campaign(folder, settings, _versions())
    tell_of_versions("campaign", campaign.versions, _versions())
    return campaign


def _finish(
    campaign: Campaign,
    sources: list[Source],
    held_out: list[Known],
    elements: list[str],
    order: RankOrder,
) -> Ranking:
    ranking = assess(
        campaign,
        sources,
        elements,
        mix=order.mix_energy_levels,
        held_out=held_out,
        symprec=order.symprec,
    )
    write_table(campaign.path, ranking)
    if not any(phase.e_above_hull is not None for phase in ranking.phases):
        raise CampaignError(_nothing_ranked(campaign, ranking))
    write_phases(campaign.path, ranking.phases, order.symprec)
    _note(campaign, ranking)
    if order.report:
        _picture(campaign, ranking, order)
    show_ranking(ranking.phases, ranking.counts)
    say("done", f"{campaign.path / (REPORT if order.report else TABLE)}")
    return ranking


def _nothing_ranked(campaign: Campaign, ranking: Ranking) -> str:
    fates = {row.status for row in campaign.originals(GENERATED)} - {VALID}
    fates |= {phase.status for phase in ranking.phases}
    return (
        f"none of {ranking.counts['generated']} candidates came through "
        f"({', '.join(sorted(fates))}): `ase db {campaign.database} -c name,status,reason` says "
        "why; raise --budget in another --out, or try another --calculator"
    )


def _picture(campaign: Campaign, ranking: Ranking, order: RankOrder) -> None:
    from crystorus.hull.plots import plot_hull
    from crystorus.hull.report import write_report

    plot_hull(ranking, campaign.path / PLOT)
    ranked_with = {
        "references": list(order.references or ("MP-20 train",)),
        "held_out": list(order.held_out),
        "mix_energy_levels": order.mix_energy_levels,
        "symprec": order.symprec,
    }
    write_report(
        campaign.path / REPORT,
        ranking,
        settings=campaign.settings | {"ranking": ranked_with},
        versions=campaign.versions,
        trajectories=campaign.path / FOLDER / TRAJECTORIES,
        animate=order.animate,
    )


def _sources(order: RankOrder, elements: list[str], folder: Path) -> list[Source]:
    sources = read_sources(order.references or default_sources(), elements, folder / REFERENCES)
    skipped = sum(source.skipped for source in sources)
    if skipped:
        say("warning", f"{skipped} reference structures cannot be read and are left out")
    return sources


def _held_out(names: tuple[str, ...], elements: list[str], folder: Path) -> list[Known]:
    sources = read_sources(names, elements, folder / REFERENCES) if names else []
    return [phase for source in sources for phase in source.phases]


def _screen(
    campaign: Campaign, originals: Iterable[Original], total: int, *, drop_duplicates: bool
) -> None:
    with stage_progress("screen") as move:
        import_originals(
            campaign,
            originals,
            settings_of(campaign).screen,
            kind=GENERATED,
            drop_duplicates=drop_duplicates,
            on_progress=lambda done: move(done, total),
        )


def _import_references(campaign: Campaign, sources: list[Source], *, mix: bool) -> None:
    limits = settings_of(campaign).screen
    for source in sources:
        import_originals(
            campaign,
            source.originals(with_energies=not mix),
            limits,
            kind=REFERENCE,
            drop_duplicates=False,
        )


def _relax(campaign: Campaign, workers: Workers) -> None:
    campaign.set_aside()
    with stage_progress("relax") as move:

        def show(progress: RelaxProgress) -> None:
            move(progress.done, progress.total)

        relax_waiting(campaign, workers, show)


def _show_relaxed(campaign: Campaign) -> None:
    statuses: dict[str, int] = {}
    for row in campaign.relaxed(GENERATED):
        statuses[row.status] = statuses.get(row.status, 0) + 1
    if not statuses:
        raise CampaignError(
            f"no structure of {campaign.path} is fit to be relaxed: `ase db {campaign.database} "
            "-c name,status,reason` says why"
        )
    listed = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items()))
    say("done", f"{listed}, in {campaign.database}")


def _note(campaign: Campaign, ranking: Ranking) -> None:
    """Write the ranking into the database, where `ase db` can sort by it."""
    keys = ("rank", "e_above_hull", "space_group", "novelty", "known_id", "same_as")
    remarks: dict[int, dict[str, str | float]] = {}
    for place, phase in enumerate(ranking.phases, start=1):
        if phase.e_above_hull is None or phase.novelty is None:
            continue
        remarks[phase.row] = {
            "rank": place,
            "e_above_hull": phase.e_above_hull,
            "space_group": phase.space_group[0],
            "novelty": phase.novelty.verdict,
        }
        if phase.novelty.id:
            remarks[phase.row]["known_id"] = phase.novelty.id
    remarks |= {row: {"same_as": name} for row, name in ranking.twins.items()}
    campaign.note(remarks, keys)


def _elements(campaign: Campaign, system: str | None) -> list[str]:
    space = campaign.settings.get("space")
    named = system or (space["system"] if space else "-".join(candidate_elements(campaign)))
    if not named:
        raise CampaignError(f"{campaign.path} holds no valid structure: there is nothing to rank")
    elements = [symbol_of(z) for z in check_system(named)]
    outside = set(candidate_elements(campaign)) - set(elements)
    if outside:
        raise CampaignError(
            f"{campaign.path} holds {min(outside)}, which is not in {named}: correct --system"
        )
    return elements


def _check_calculator(settings: RelaxSettings, workers: Workers) -> None:
    check_workers(workers)
    if not workers.scheduler:  # on a cluster it need not be installed here
        load_calculator(settings.calculator)


def _check_level_of(settings: RelaxSettings, sources: list[Source], *, mix: bool) -> None:
    """Refuse references of another level before hours of relaxation, not after them."""
    levels = {energy_level(settings.calculator)}
    levels |= {p.level for s in sources for p in s.phases if p.atoms is None}
    check_levels(levels, mix=mix)


def _write_compositions(folder: Path, choice: Choice) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["formula", "reduced_formula", "formula_units", "n_atoms"])
    for c in choice.compositions:
        writer.writerow([c.formula, c.reduced_formula, c.formula_units, c.n_atoms])
    with disk_errors(folder):
        write_whole(folder / COMPOSITIONS, text.getvalue())


def _of(choice: Choice) -> str:
    text = f"of {len(choice.compositions)} compositions chosen from {choice.n_enumerated}"
    return text + (f" ({choice.n_charged} are not neutral)" if choice.n_charged else "")


def _versions() -> dict[str, str]:
    return program_versions(_PROGRAMS)
