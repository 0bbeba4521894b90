#!/bin/sh
# The paper's tables and figures at its own settings. Kill it at any time and start it again: it goes on.
#   DEVICE=cuda sh examples/paper_full.sh    # from the root of a clone
# With several machines on one file system, give each its own seeds, SEEDS=0, SEEDS=1, …; a last run
# without SEEDS collects the tables.
set -eu
OUT=${OUT:-runs/paper-full}
MP20=${MP20:-data/mp-20}
DEVICE=${DEVICE:-cpu}

crystorus data get mp-20 --folder "$MP20" --split train --split val --split test

run() {
    python -m reproduction "$@" --budget full --out "$OUT" --device "$DEVICE" \
        --data "$MP20/train.csv" --validation "$MP20/val.csv" --held-out "$MP20/test.csv" \
        ${ALIGNN:+--alignn-weights "$ALIGNN"} ${SEEDS:+--seeds "$SEEDS"}
}

run table2
run table3
run table4
for name in figure1 figure2 figure3 figure4 figure5 figure6 latent times; do
    run "$name"
done
