#!/bin/sh
# The whole job on the embedded generator, no network, no GPU: train a policy at T=4, make the same images with it and with
# the hand-made schedule, and judge both against the real images. Run it again after an interruption: it goes on.
set -eu
cd "$(dirname "$0")/.."
out=${1:-demo-run}
seed=${2:-0}

# Where bfloat16 is fast (a GPU, or a CPU with AMX or AVX-512 bfloat16) the time goes into more trajectories.
trajectories=$(python -c 'from adanat_toolkit.runtime import fastest_dtype, resolve_device
import torch
print(8192 if fastest_dtype(resolve_device("auto"))[0] == torch.bfloat16 else 6144)')

echo "1/3 train: $out/run" >&2
adanat train --preset demo --trajectories "$trajectories" --seed "$seed" --out "$out/run"

echo "2/3 sample: the same seeds under both" >&2
adanat sample --policy "$out/run" --num 64 --seed 1000 --out "$out/samples/learned"
adanat sample --policy fixed --num 64 --seed 1000 --out "$out/samples/hand-made"

echo "3/3 evaluate: images side by side in $out/evaluation/comparison.png" >&2
adanat evaluate --policy "$out/run" --num 2000 --seed 1000 --out "$out/evaluation"
