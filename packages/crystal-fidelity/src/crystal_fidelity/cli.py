"""Command line: files in, a table on screen, JSON and HTML on request, progress on standard error.

What computes is imported inside the commands, so that help and wrong words are answered at once.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from crystal_fidelity import __version__
from crystal_fidelity.commandline import counted, log, make_app, run
from crystal_fidelity.errors import FidelityError
from crystal_fidelity.files import check_writable
from crystal_fidelity.options import FeaturizerName, MatchSettings, Settings
from crystal_fidelity.workers import cores

if TYPE_CHECKING:
    from crystal_fidelity.compare import Comparison
    from crystal_fidelity.structures import Entry

app = make_app(
    "crystal-fidelity",
    "How faithful generated crystals are to a reference set.",
    lambda: f"crystal-fidelity {__version__}",
)
weights_app = make_app("weights", "Published ALIGNN weights.")
study_app = make_app("study", "How the metrics behave: Figs 3 to 6 of the paper.")
app.command(weights_app)
app.command(study_app)
INCOMPLETE = 3
"""Exit status where a metric could not be computed."""
CORES = min(2, cores())
MAX_NAMED = 10

Flat = Parameter(name="*")
Workers = Annotated[int, Parameter(help="Processes for reading and matching.")]
Json = Annotated[Path | None, Parameter(help="Write all numbers here.")]
Html = Annotated[Path | None, Parameter(help="Write a page that loads nothing here.")]
Seed = Annotated[int, Parameter(help="Of random splits, noise and subsets.")]
Network = Annotated[FeaturizerName, Parameter(help="Network of the Fréchet distance.")]
Weights = Annotated[Path | None, Parameter(help="Weights of the featurizer, where it needs some.")]
Cache = Annotated[Path | None, Parameter(help="Folder of cached network outputs.")]


@contextmanager
def _expected() -> Iterator[None]:
    """Turn what the metrics raise because of their input into what `run` prints as it is."""
    try:
        yield
    except (ValueError, KeyError, ImportError, OSError) as error:
        if isinstance(error, FidelityError) or getattr(error, "errno", None) is not None:
            raise
        raise FidelityError(str(error.args[0] if isinstance(error, KeyError) else error)) from error


@app.command
@_expected()
def compare(
    generated: Path,
    reference: Path,
    /,
    *,
    options: Annotated[Settings, Flat] = Settings(),
    published: bool = False,
    workers: Workers = CORES,
    json: Json = None,
    html: Html = None,
) -> int:
    """Score GENERATED against REFERENCE; exit status 3 if a metric could not be computed.

    Args:
        generated: CIF, POSCAR, extxyz, CSV, an ASE database, or a folder of them.
        reference: The same formats.
        published: Print what others have published of these metrics beside it, with the source.
    """
    from crystal_fidelity.report import (
        FIELDS,
        published_figures,
        published_table,
        structure_rows,
        write_json,
    )
    from crystal_fidelity.report import write_report as write_html

    _check_writable(json, html)
    settings = replace(options, workers=workers)
    (left, _), result, about = _compared(generated, reference, settings)
    if published:
        _echo(published_table(result.scores, generated.name))
    if html:
        title = f"{generated.name} against {reference.name}"
        write_html(html, title, left, result, {k: _fact(v) for k, v in about["files"].items()})
    if json:
        record = about | {
            "settings": asdict(settings),
            "scores": [score.as_dict() for score in result.scores],
            "not_computed": result.not_computed,
            "published": published_figures() if published else [],
            "structures": [
                dict(zip(FIELDS, row, strict=True)) for row in structure_rows(left, result)
            ],
        }
        write_json(json, record)
    for metric, reason in result.not_computed.items():
        log("error", f"not computed: {metric}: {reason}")
    return INCOMPLETE if result.not_computed else 0


@app.command
@_expected()
def validity(generated: Path, /, *, workers: Workers = CORES, json: Json = None) -> None:
    """Say which structures of GENERATED have no collision, self-images included.

    Args:
        generated: CIF, POSCAR, extxyz, CSV, an ASE database, or a folder of them.
    """
    from crystal_fidelity.report import print_scores, write_json
    from crystal_fidelity.validity import structural_validity

    _check_writable(json)
    with _stages() as stage:
        entries = _read("generated", generated, workers, stage)
        stage("validity")
        result = structural_validity(entries)
    print_scores(result.scores(), title=str(generated))
    invalid = [(e.name, r) for e, r in zip(entries, result.reasons, strict=True) if r]
    _name_some("invalid", invalid)
    if json:
        rows = zip(entries, result.reasons, result.min_distance, strict=True)
        record = _provenance(generated=(generated, entries)) | {
            "scores": [score.as_dict() for score in result.scores()],
            "structures": [
                {"name": e.name, "valid": not r, "reason": r, "min_distance_angstrom": float(d)}
                for e, r, d in rows
            ],
        }
        write_json(json, record)


@app.command
@_expected()
def match(
    generated: Path,
    reference: Path,
    /,
    *,
    options: Annotated[MatchSettings, Flat] = MatchSettings(),
    workers: Workers = CORES,
    json: Json = None,
) -> None:
    """Match the i-th of GENERATED with the i-th of REFERENCE by StructureMatcher.

    Args:
        generated: CIF, POSCAR, extxyz, CSV, an ASE database, or a folder of them.
        reference: The same formats.
    """
    from crystal_fidelity.report import write_json

    _check_writable(json)
    settings = Settings(**asdict(replace(options, workers=workers)), metrics=("match",))
    (_, right), result, about = _compared(generated, reference, settings)
    if json and result.match:
        pairs = zip(right, result.match.outcomes, result.match.chosen, strict=True)
        record = about | {
            "scores": [score.as_dict() for score in result.scores],
            "pairs": [{"reference": e.name, **asdict(o), "candidate": k} for e, o, k in pairs],
        }
        write_json(json, record)


@app.command
@_expected()
def features(
    structures: Path,
    out: Path,
    /,
    *,
    featurizer: Network = "chgnet",
    weights: Weights = None,
    cache: Cache = None,
    workers: Workers = CORES,
) -> None:
    """Compute the features of STRUCTURES and write them with the network's identity to OUT.

    Args:
        structures: CIF, POSCAR, extxyz, CSV, an ASE database, or a folder of them.
        out: The .npz to write.
    """
    from crystal_fidelity.features import make_featurizer, save_features

    if out.suffix != ".npz":
        raise ValueError(f"{out}: features are written to .npz")
    _check_writable(out)
    with _stages() as stage:
        entries = _read("given", structures, workers, stage)
        network = make_featurizer(featurizer, weights=weights, cache=cache, on_progress=stage)
        found = network.features(entries)
    save_features(out, found)
    _echo(f"{len(found)} of {counted(len(entries), 'structure')}: {found.identity}")
    _name_some("no features", found.failures)


@app.command
@_expected()
def frechet(generated: Path, reference: Path, /, *, seed: Seed = 0, json: Json = None) -> None:
    """Fréchet and kernel distance of two feature files, with floor and bias correction.

    Args:
        generated: Features (.npz) of the generated set.
        reference: Features (.npz) of the reference set.
    """
    from crystal_fidelity.compare import feature_scores
    from crystal_fidelity.features import DISTANCE_NAMES, load_features
    from crystal_fidelity.report import print_scores, write_json

    _check_writable(json)
    left, right = load_features(generated), load_features(reference)
    known = DISTANCE_NAMES.values()
    name = next((n for n in known if n.split()[1] in left.identity.name), "Fréchet")
    scores = feature_scores(left, right, name=name, seed=seed)
    print_scores(scores, title=f"{generated} against {reference}")
    if json:
        write_json(json, {"scores": [score.as_dict() for score in scores]})


@weights_app.command
@_expected()
def fetch(name: str, out: Path, /, *, sha256: str | None = None) -> None:
    """Download published ALIGNN weights and keep them as safetensors with both digests.

    Args:
        name: mp_e_form_alignn (mp_e_form_alignnn is the same).
        out: The .safetensors to write.
        sha256: Digest that the download must have.
    """
    from crystal_fidelity.features.alignn import convert_weights, fetch_weights

    archive = out.with_suffix(".zip")
    with _stages() as stage:
        stage(f"downloading {name}")
        found = fetch_weights(name, archive, sha256=sha256)
        digest = convert_weights(archive, out)
    _echo(f"download SHA-256 {found}\ntensors  SHA-256 {digest}\n{out}")


@weights_app.command
@_expected()
def convert(source: Path, out: Path, /) -> None:
    """Turn a downloaded checkpoint into safetensors without executing what it holds.

    Args:
        source: Official .zip, or a checkpoint .pt.
        out: The .safetensors to write.
    """
    from crystal_fidelity.features.alignn import convert_weights

    _check_writable(out)
    _echo(f"tensors SHA-256 {convert_weights(source, out)}\n{out}")


@study_app.command
@_expected()
def noise(
    reference: Path,
    disturbed: list[Path] | None = None,
    /,
    *,
    source: Path | None = None,
    levels: str = "0,.01,.02,.05,.1,.2,.4,.7,1",
    displacement: float = 4.0,
    strain: float = 0.1,
    limit: int = 0,
    featurizer: Network = "chgnet",
    weights: Weights = None,
    cache: Cache = None,
    seed: Seed = 0,
    html: Html = None,
    json: Json = None,
) -> None:
    """Distance of disturbed real crystals against the noise (Fig. 3).

    At level 1 of the default, atoms are spread over the whole cell and the curve is flat.

    Args:
        reference: Undisturbed structures to compare with.
        disturbed: Files of disturbed structures, the level last in each name.
        source: Structures to disturb here, instead of files.
        levels: Noise levels from 0 to 1, comma-separated.
        displacement: Å per coordinate at level 1.
        strain: Deviation of the cell's strain at level 1.
        limit: Disturb at most this many; 0 is all.
    """
    from rich.table import Table

    from crystal_fidelity.features import DISTANCE_NAMES, make_featurizer
    from crystal_fidelity.reading import read_structures
    from crystal_fidelity.report import digits, write_json, write_plots
    from crystal_fidelity.studies import level_of, noise_curve, noise_plot, noised

    _check_writable(html, json)
    truth = read_structures(reference)
    if disturbed:
        sets = {level_of(path.stem): read_structures(path) for path in disturbed}
    elif source is not None:
        given = read_structures(source)[: limit or None]
        sets = {
            level: list(noised(given, level, seed, displacement=displacement, strain=strain))
            for level in map(float, levels.split(","))
        }
    else:
        raise ValueError("give files of disturbed structures, or --source FILE to disturb here")
    with _stages() as stage:
        network = make_featurizer(featurizer, weights=weights, cache=cache, on_progress=stage)
        points = noise_curve(sets, truth, network, stage)
    name = DISTANCE_NAMES[featurizer]
    table = Table("level", name, "± 1 s.e.", "kernel", "n", "without features")
    for p in points:
        numbers = f"{p.level:g}", digits(p.frechet), digits(p.error, 2), digits(p.kernel)
        table.add_row(*numbers, str(p.n), str(p.failed))
    _echo(table)
    if html:
        write_plots(html, f"{name} against noise", noise_plot(points, name, "noise level"))
    if json:
        content = {"identity": asdict(network.identity), "points": [asdict(p) for p in points]}
        write_json(json, content)


@study_app.command
@_expected()
def size(
    generated: Path,
    reference: Path,
    /,
    *,
    sizes: str = "",
    repeats: int = 5,
    seed: Seed = 0,
    html: Html = None,
    json: Json = None,
) -> None:
    """Distance against sample size, and its limit for infinitely many (Fig. 4).

    Args:
        generated: Features (.npz).
        reference: Features (.npz).
        sizes: Comma-separated; doubling from 64 if empty.
        repeats: Random subsets per size.
    """
    from rich.table import Table

    from crystal_fidelity.features import load_features
    from crystal_fidelity.report import digits, write_json, write_plots
    from crystal_fidelity.studies import extrapolated, size_plot, size_study

    _check_writable(html, json)
    left, right = load_features(generated), load_features(reference)
    chosen = [int(text) for text in sizes.split(",")] if sizes else None
    points = size_study(left, right, chosen, repeats=repeats, seed=seed)
    limit = extrapolated(points)
    table = Table("n", "distance", "± of one subset")
    for p in points:
        table.add_row(str(p.n), f"{p.mean:.4g}", digits(p.spread, 2))
    _echo(table)
    _echo(f"n → ∞ by a line in 1/n: {limit:.4g}    {left.identity}")
    if html:
        name = f"Fréchet distance, {left.identity.name}"
        write_plots(html, name, [size_plot({generated.stem: points}, name)])
    if json:
        rows = [asdict(p) for p in points]
        write_json(json, {"identity": asdict(left.identity), "points": rows, "limit": limit})


@study_app.command
@_expected()
def distributions(
    sets: list[Path],
    /,
    *,
    energy: str = "chgnet",
    cache: Cache = None,
    html: Html = None,
    json: Json = None,
) -> None:
    """Densities and energies of several sets side by side (Figs 5 and 6).

    Args:
        sets: Two or more sets, the real one last.
        energy: chgnet, an ASE calculator's module:factory, or none.
    """
    from crystal_fidelity.energies import load_references, make_energy_model
    from crystal_fidelity.reading import read_structures
    from crystal_fidelity.report import write_json, write_plots
    from crystal_fidelity.studies import distribution_plots
    from crystal_fidelity.studies import distributions as property_distributions

    if html is None and json is None:
        raise ValueError("nothing to write: give --html FILE or --json FILE")
    _check_writable(html, json)
    entries = {path.name: read_structures(path) for path in sets}
    if len(entries) < len(sets):
        raise ValueError("two of the sets have the same file name: rename one")
    with _stages() as stage:
        chosen = energy != "none"
        model = make_energy_model(energy, cache=cache, on_progress=stage) if chosen else None
        references = load_references() if energy == "chgnet" else None
        found = property_distributions(entries, model, references)
    if html:
        write_plots(html, "Distributions", distribution_plots(found))
        log("done", f"wrote {html}")
    if json:
        write_json(json, {"distributions": [asdict(d) for d in found]})


# What the commands share


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Yield what names the stage now running, on standard error."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda stage: progress.update(task, description=stage)


def _read(side: str, path: Path, workers: int, stage: Callable[[str], None]) -> "list[Entry]":
    """Read one side of a comparison, and name what could not be read."""
    from crystal_fidelity.reading import read_structures
    from crystal_fidelity.structures import ReadFailure

    stage(f"reading {side} structures from {path}")
    entries = read_structures(path, workers=workers)
    if failures := [(e.name, e.reason) for e in entries if isinstance(e, ReadFailure)]:
        log("warning", f"{len(failures)} of {len(entries)} {side} structures could not be read:")
        _name_some("unreadable", failures)
    return entries


def _compared(
    generated: Path, reference: Path, settings: Settings
) -> "tuple[tuple[list[Entry], list[Entry]], Comparison, dict[str, Any]]":
    """Read both sides, compare them and print the scores; return also where they are from."""
    from crystal_fidelity.compare import compare as compare_sets
    from crystal_fidelity.report import print_scores

    with _stages() as stage:
        left = _read("generated", generated, settings.workers, stage)
        right = _read("reference", reference, settings.workers, stage)
        result = compare_sets(left, right, settings, stage)
    print_scores(result.scores, title=f"{generated} against {reference}")
    about = _provenance(generated=(generated, left), reference=(reference, right))
    return (left, right), result, about


def _provenance(**sides: "tuple[Path, list[Entry]]") -> dict[str, Any]:
    from crystal_fidelity.files import file_digest
    from crystal_fidelity.structures import ReadFailure

    files = {
        side: {
            "path": str(path),
            "structures": len(entries),
            "sha256": file_digest(path) if path.is_file() else None,
            "unreadable": [asdict(e) for e in entries if isinstance(e, ReadFailure)],
        }
        for side, (path, entries) in sides.items()
    }
    return {"crystal_fidelity": __version__, "files": files}


def _fact(file: Mapping[str, Any]) -> str:
    text = f"{Path(file['path']).name}: {counted(file['structures'], 'structure')}, "
    text += f"{len(file['unreadable'])} unreadable"
    return f"{text}, SHA-256 {file['sha256'][:16]}…" if file["sha256"] else text


def _check_writable(*paths: Path | None) -> None:
    """Refuse a file that cannot be written before the work, not after it."""
    for path in filter(None, paths):
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: name a file in a folder that exists")
        check_writable(path.parent)


def _name_some(what: str, cases: "tuple[tuple[str, str], ...] | list[tuple[str, str]]") -> None:
    for name, reason in cases[:MAX_NAMED]:
        log(what, f"{name}: {reason}")
    if len(cases) > MAX_NAMED:
        log(what, f"and {len(cases) - MAX_NAMED} more; --json names all, where there is one")


def _echo(content: Any) -> None:
    from rich.console import Console

    Console().print(content, markup=False, highlight=False)


RENAMED = {
    (command, "--protocol"): "!match rates by all protocols stand side by side"
    for command in ("match", "compare")
}
"""See `commandline.run`."""


def main() -> None:
    """Run the command line; expected errors are one sentence, not a traceback."""
    sys.exit(run(app, sys.argv[1:], renamed=RENAMED))
