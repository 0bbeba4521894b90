"""Commands of the studies: curves and distributions to HTML and JSON."""

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from crystal_fidelity.energies import load_references
from crystal_fidelity.featurizers import load_features
from crystal_fidelity.html import write_plots
from crystal_fidelity.models import (
    DISTANCE_NAMES,
    FeaturizerName,
    make_energy_model,
    make_featurizer,
)
from crystal_fidelity.reading import read_structures
from crystal_fidelity.report import digits, write_json
from crystal_fidelity.studies import (
    Distribution,
    distribution_plots,
    extrapolated,
    level_of,
    noise_curve,
    noise_plot,
    noised,
    size_plot,
    size_study,
)
from crystal_fidelity.studies import distributions as property_distributions

study_app = typer.Typer(help="How the metrics behave: Figs 3-6.", no_args_is_help=True)

Html = Annotated[Path | None, typer.Option("--html", help="write the plots here")]
Json = Annotated[Path | None, typer.Option("--json", help="write the numbers here")]
Weights = Annotated[Path | None, typer.Option(help="weights of the featurizer")]
Cache = Annotated[Path | None, typer.Option(help="folder of cached network outputs")]
FeaturizerOption = Annotated[FeaturizerName, typer.Option(help="network")]
Seed = Annotated[int, typer.Option(help="of noise and subsets")]


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False)


@study_app.command("noise")
def noise(
    reference: Annotated[Path, typer.Argument(help="undisturbed structures to compare with")],
    disturbed: Annotated[
        list[Path] | None,
        typer.Argument(help="files of disturbed structures, the level last in each name"),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="structures to disturb here, instead of files")
    ] = None,
    levels: Annotated[
        str, typer.Option(help="noise levels from 0 to 1")
    ] = "0,.01,.02,.05,.1,.2,.4,.7,1",
    displacement: Annotated[float, typer.Option(help="Å per coordinate at level 1")] = 4.0,
    strain: Annotated[float, typer.Option(help="deviation of the cell's strain at level 1")] = 0.1,
    limit: Annotated[int, typer.Option(help="disturb at most this many; 0 is all")] = 0,
    featurizer: FeaturizerOption = "chgnet",
    weights: Weights = None,
    cache: Cache = None,
    seed: Seed = 0,
    html: Html = None,
    json: Json = None,
) -> None:
    """Distance of disturbed real crystals against the noise (Fig. 3).

    At level 1 of the default, atoms are spread over the whole cell and the curve is flat.
    """
    truth = read_structures(reference)
    if disturbed:
        sets = {level_of(path.stem): read_structures(path) for path in disturbed}
    elif source is not None:
        given = read_structures(source)[: limit or None]
        sets = {
            float(t): list(noised(given, float(t), seed, displacement=displacement, strain=strain))
            for t in levels.split(",")
        }
    else:
        raise ValueError("give files of disturbed structures, or --source FILE to disturb here")
    network = make_featurizer(featurizer, weights=weights, cache=cache, on_progress=_say)
    points = noise_curve(sets, truth, network, _say)
    name = DISTANCE_NAMES[featurizer]
    table = Table("level", name, "± 1 s.e.", "kernel", "n", "without features")
    for p in points:
        numbers = f"{p.level:g}", digits(p.frechet), digits(p.error, 2), digits(p.kernel)
        table.add_row(*numbers, str(p.n), str(p.failed))
    Console().print(table)
    if html:
        write_plots(html, f"{name} against noise", noise_plot(points, name, "noise level"))
    if json:
        content = {"identity": asdict(network.identity), "points": [asdict(p) for p in points]}
        write_json(json, content)


@study_app.command("size")
def size(
    generated: Annotated[Path, typer.Argument(help="features (.npz)")],
    reference: Annotated[Path, typer.Argument(help="features (.npz)")],
    sizes: Annotated[str, typer.Option(help="comma-separated; doubling from 64 if empty")] = "",
    repeats: Annotated[int, typer.Option(help="random subsets per size")] = 5,
    seed: Seed = 0,
    html: Html = None,
    json: Json = None,
) -> None:
    """Distance against sample size, and its limit for infinitely many (Fig. 4)."""
    left, right = load_features(generated), load_features(reference)
    chosen = [int(text) for text in sizes.split(",")] if sizes else None
    points = size_study(left, right, chosen, repeats=repeats, seed=seed)
    limit = extrapolated(points)
    table = Table("n", "distance", "± of one subset")
    for p in points:
        table.add_row(str(p.n), f"{p.mean:.4g}", digits(p.spread, 2))
    Console().print(table)
    Console().print(f"n → ∞ by a line in 1/n: {limit:.4g}    {left.identity}", highlight=False)
    if html:
        name = f"Fréchet distance, {left.identity.name}"
        write_plots(html, name, [size_plot({generated.stem: points}, name)])
    if json:
        points_out = [asdict(p) for p in points]
        write_json(json, {"identity": asdict(left.identity), "points": points_out, "limit": limit})


@study_app.command("distributions")
def distributions(
    sets: Annotated[list[Path], typer.Argument(help="two or more sets, the real one last")],
    html: Html = None,
    json: Json = None,
    energy: Annotated[
        str, typer.Option(help="chgnet, an ASE calculator's module:factory, or none")
    ] = "chgnet",
    cache: Cache = None,
) -> None:
    """Densities and energies of several sets side by side (Figs 5 and 6)."""
    if html is None and json is None:
        raise ValueError("nothing to write: give --html FILE or --json FILE")
    entries = {path.name: read_structures(path) for path in sets}
    if len(entries) < len(sets):
        raise ValueError("two of the sets have the same file name: rename one")
    model = None if energy == "none" else make_energy_model(energy, cache=cache, on_progress=_say)
    references = load_references() if energy == "chgnet" else None
    found = property_distributions(entries, model, references)
    if html:
        write_plots(html, "Distributions", distribution_plots(found))
        _say(f"wrote {html}")
    if json:
        write_json(json, {"distributions": [_plain(d) for d in found]})


def _plain(found: Distribution) -> dict[str, object]:
    """Return a distribution for JSON, NaN as null."""
    values = {
        label: [float(v) if isfinite(v) else None for v in row]
        for label, row in found.values.items()
    }
    return {"name": found.name, "unit": found.unit, "values": values}
