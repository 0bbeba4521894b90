#!/usr/bin/env bash
# Build wheels and sdists of both packages, look at what is in them, and install each alone in a
# clean environment: `make release-check`. PYTHONS names the interpreters, as in "python3.11 python3.13".
set -euo pipefail
cd "$(dirname "$0")/.."
dist=build/dist
rm -rf "$dist"
mkdir -p "$dist"
first=$(set -- ${PYTHONS:-python3}; echo "$1")

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$first" -m venv "$tools/build"
"$tools/build/bin/pip" -q --disable-pip-version-check install build twine
for package in packages/crystal-fidelity .; do
  "$tools/build/bin/python" -m build --outdir "$dist" "$package" > /dev/null
done
"$tools/build/bin/twine" check --strict "$dist"/*
"$first" packaging/contents.py "$dist"

for python in ${PYTHONS:-python3}; do
  for program in crystal-fidelity crystorus; do
    environment="$tools/$python-$program"
    "$python" -m venv "$environment"
    # The wheel of crystorus finds crystal-fidelity among the wheels; no index has either.
    "$environment/bin/pip" -q --disable-pip-version-check install -c constraints.txt \
      --find-links "$dist" --only-binary crystorus,crystal-fidelity "$program"
    "$environment/bin/pip" check
    (
      cd "$tools" # nothing of the clone is importable here
      "$environment/bin/$program" --version
      if [[ $program == crystorus ]]; then
        "$environment/bin/crystorus" sample LiFeO2 --quality fast --out "$environment/out"
        "$environment/bin/python" -m crystorus info > /dev/null
      else
        "$environment/bin/python" -c 'from ase.build import bulk; bulk("Cu").write("cu.cif")'
        "$environment/bin/crystal-fidelity" validity cu.cif
        ! "$environment/bin/python" -c 'import torch' 2> /dev/null
      fi
    )
    echo "$program: installed alone with $("$python" --version)"
    rm -rf "$environment"
  done
done
