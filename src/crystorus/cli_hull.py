"""The commands of a campaign, `hull`, `relax` and `rank`: names, help texts and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crystorus.cli_choices import (
    Candidates,
    Checkpoint,
    Device,
    Library,
    OptimizerName,
    Quality,
    Seed,
    Start,
    Steps,
)

if TYPE_CHECKING:
    from crystorus.hull.orders import RankOrder


_Calculator = Annotated[
    str,
    typer.Option(help="chgnet, or module:factory of an ASE calculator.", rich_help_panel="Relax"),
]
_Fmax = Annotated[
    float, typer.Option(help="Relaxed below this force, eV/Å.", rich_help_panel="Relax")
]
_RelaxSteps = Annotated[
    int, typer.Option(help="Optimiser steps, at most.", rich_help_panel="Relax")
]
_Optimizer = Annotated[
    OptimizerName, typer.Option(help="ASE's optimiser.", rich_help_panel="Relax")
]
_FixedCell = Annotated[
    bool, typer.Option("--fixed-cell", help="Move atoms only.", rich_help_panel="Relax")
]
_KeepSymmetry = Annotated[
    bool,
    typer.Option(
        "--keep-symmetry", help="Impose the initial space group.", rich_help_panel="Relax"
    ),
]
_MaxForce = Annotated[
    float, typer.Option(help="Give up above this force, eV/Å.", rich_help_panel="Relax")
]
_WorkerCount = Annotated[
    int,
    typer.Option("--workers", help="Local processes; 0: this one.", rich_help_panel="Workers"),
]
_Scheduler = Annotated[
    str | None,
    typer.Option(help="A Dask scheduler: tcp://host:8786.", rich_help_panel="Workers"),
]
_References = Annotated[
    list[str] | None,
    typer.Option(
        help="Structures, pymatgen entries (.json), materials-project; can be repeated.",
        show_default="data/mp-20/train.csv",
        rich_help_panel="Rank",
    ),
]
_HeldOut = Annotated[
    list[str] | None,
    typer.Option(help="Known phases to look for, not on the hull.", rich_help_panel="Rank"),
]
_Mix = Annotated[
    bool,
    typer.Option(
        "--mix-energy-levels", help="Let different energies meet.", rich_help_panel="Rank"
    ),
]
_Symprec = Annotated[float, typer.Option(help="Symmetry tolerance in Å.", rich_help_panel="Rank")]
_NoReport = Annotated[
    bool, typer.Option("--no-report", help="Neither plots nor report.", rich_help_panel="Rank")
]
_Animate = Annotated[
    list[str] | None,
    typer.Option(help="Show how this candidate was denoised.", rich_help_panel="Rank"),
]
_Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace another campaign.", rich_help_panel="Files")
]


def _ranking(
    references: list[str] | None,
    held_out: list[str] | None,
    mix_energy_levels: bool,
    symprec: float,
    no_report: bool,
    animate: list[str] | None,
) -> "RankOrder":
    from crystorus.hull.orders import RankOrder

    return RankOrder(
        tuple(references or ()),
        tuple(held_out or ()),
        mix_energy_levels=mix_energy_levels,
        symprec=symprec,
        report=not no_report,
        animate=tuple(animate or ()),
    )


def hull(
    system: Annotated[str, typer.Argument(help="A chemical system, as in Li-Fe-O.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the campaign; an interrupted one goes on there.")
    ] = Path("out"),
    budget: Annotated[int, typer.Option(help="Crystals of the campaign, at most.")] = 200,
    n: Annotated[int, typer.Option(help="Crystals per composition.")] = 2,
    max_atoms: Annotated[
        int, typer.Option(help="Atoms per cell, at most.", rich_help_panel="Compositions")
    ] = 12,
    z: Annotated[
        str | None,
        typer.Option(
            help="Formula units per cell.", show_default="all", rich_help_panel="Compositions"
        ),
    ] = None,
    formula: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this formula; can be repeated.",
            show_default="all",
            rich_help_panel="Compositions",
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(help="Every composition holds it.", rich_help_panel="Compositions"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="No composition holds it.", rich_help_panel="Compositions"),
    ] = None,
    max_count: Annotated[
        int,
        typer.Option(help="Largest number in a formula.", rich_help_panel="Compositions"),
    ] = 8,
    min_elements: Annotated[
        int, typer.Option(help="1 tries elements too.", rich_help_panel="Compositions")
    ] = 2,
    any_charge: Annotated[
        bool,
        typer.Option(
            "--any-charge",
            help="Keep what common oxidation states cannot balance.",
            rich_help_panel="Compositions",
        ),
    ] = False,
    seed: Seed = 0,
    sampler_steps: Steps = None,
    quality: Quality = None,
    candidates: Candidates = 1,
    checkpoint: Checkpoint = None,
    start: Start = None,
    library: Library = None,
    device: Device = "cpu",
    calculator: _Calculator = "chgnet",
    fmax: _Fmax = 0.05,
    relax_steps: _RelaxSteps = 300,
    optimizer: _Optimizer = OptimizerName.BFGS,
    fixed_cell: _FixedCell = False,
    keep_symmetry: _KeepSymmetry = False,
    max_force: _MaxForce = 300.0,
    workers: _WorkerCount = 1,
    scheduler: _Scheduler = None,
    references: _References = None,
    held_out: _HeldOut = None,
    mix_energy_levels: _Mix = False,
    symprec: _Symprec = 0.1,
    no_report: _NoReport = False,
    animate: _Animate = None,
    no_trajectories: Annotated[
        bool,
        typer.Option("--no-trajectories", help="Forget the steps.", rich_help_panel="Files"),
    ] = False,
    overwrite: _Overwrite = False,
) -> None:
    """Go from a chemical system to relaxed phases on a convex hull.

    Writes campaign.db (ASE), table.csv, CIFs by composition, hull.svg, hull.png and report.html.
    """
    from crystorus.hull import command, orders
    from crystorus.hull.enumeration import Space
    from crystorus.hull.sampling import Sampling
    from crystorus.sample.options import parse_units

    space = Space(
        system,
        max_atoms,
        parse_units(z) if z is not None else (),
        tuple(formula or ()),
        tuple(require or ()),
        tuple(exclude or ()),
        max_count,
        min_elements,
        neutral=not any_charge,
    )
    sampling = Sampling(
        n,
        budget,
        seed,
        sampler_steps,
        checkpoint,
        start.value if start else None,
        library,
        device,
        keep_trajectories=not no_trajectories,
        quality=quality.value if quality else None,
        candidates=candidates,
    )
    relaxation = orders.relax_settings(
        calculator,
        fmax,
        relax_steps,
        optimizer.value,
        max_force,
        fixed_cell=fixed_cell,
        keep_symmetry=keep_symmetry,
    )
    rank = _ranking(references, held_out, mix_energy_levels, symprec, no_report, animate)
    command.hull(
        orders.HullOrder(
            space, out, sampling, relaxation, rank, orders.workers(workers, scheduler), overwrite
        )
    )


def relax(
    source: Annotated[
        Path, typer.Argument(help="CSV, CIFs, extxyz, POSCAR, ASE database, or a campaign.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of a new campaign; an interrupted one goes on there."),
    ] = None,
    calculator: _Calculator = "chgnet",
    fmax: _Fmax = 0.05,
    relax_steps: _RelaxSteps = 300,
    optimizer: _Optimizer = OptimizerName.BFGS,
    fixed_cell: _FixedCell = False,
    keep_symmetry: _KeepSymmetry = False,
    max_force: _MaxForce = 300.0,
    keep_duplicates: Annotated[
        bool,
        typer.Option("--keep-duplicates", help="Relax repeats too.", rich_help_panel="Relax"),
    ] = False,
    workers: _WorkerCount = 1,
    scheduler: _Scheduler = None,
    overwrite: _Overwrite = False,
) -> None:
    """Screen and relax structures into an ASE database."""
    from crystorus.hull import command, orders

    command.relax_structures(
        orders.RelaxOrder(
            source,
            out,
            orders.relax_settings(
                calculator,
                fmax,
                relax_steps,
                optimizer.value,
                max_force,
                fixed_cell=fixed_cell,
                keep_symmetry=keep_symmetry,
            ),
            orders.workers(workers, scheduler),
            keep_duplicates,
            overwrite,
        )
    )


def rank(
    source: Annotated[
        Path, typer.Argument(help="Folder of a campaign, or pymatgen entries (.json).")
    ],
    system: Annotated[
        str | None,
        typer.Option(help="A chemical system, as in Li-Fe-O.", show_default="what is there"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the table of an entries file goes.")
    ] = None,
    workers: _WorkerCount = 1,
    scheduler: _Scheduler = None,
    references: _References = None,
    held_out: _HeldOut = None,
    mix_energy_levels: _Mix = False,
    symprec: _Symprec = 0.1,
    no_report: _NoReport = False,
    animate: _Animate = None,
) -> None:
    """Rank relaxed structures on a convex hull; plots and report."""
    from crystorus.hull import command, orders

    order = _ranking(references, held_out, mix_energy_levels, symprec, no_report, animate)
    command.rank(source, system, out, order, orders.workers(workers, scheduler))
