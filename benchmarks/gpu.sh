#!/usr/bin/env bash
# Everything that needs a GPU, in pieces of under nine minutes each:
#
#     benchmarks/gpu.sh setup              packages that are missing (from wheels/ where there is no network)
#     benchmarks/gpu.sh kernels            fla-core; causal-conv1d and mamba-ssm, built from source where no wheel fits
#     benchmarks/gpu.sh tests              pytest -m gpu: kernels, kNN search and training on the device
#     benchmarks/gpu.sh train MODEL …      each 200 steps at size=small, bf16-mixed, on the standard library's sources
#     benchmarks/gpu.sh backends           Mamba and Mamba-2 with their kernels beside our own forms
#     benchmarks/gpu.sh windows            sliding windows by flex_attention beside our own form, three lengths
#     benchmarks/gpu.sh fla MODEL …        deltanet, gla, rwkv7 … with flash-linear-attention's kernels beside our own form
#     benchmarks/gpu.sh bench MODEL …      zoo bench at size=small and three lengths: speed, memory, share of the GPU's
#                                          rate of matrix products; table, CSV and plot
#
# What a piece prints goes to $OUT/<piece>.txt too (default: results/gpu).  PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-results/gpu}
piece=${1:?expected setup, kernels, tests, train, backends, windows, fla or bench}
shift
mkdir -p "$out"
exec > >(tee "$out/$piece.txt") 2>&1
date -u +%FT%TZ
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "no GPU"
$python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'

train() { # MODEL [key=value …]
    $python -m zoo.train model="$1" size=small steps=200 val_every=200 checkpoint_every=200 \
        trainer.accelerator=gpu trainer.precision=bf16-mixed run_dir="$out/runs/$*" "${@:2}"
}

case $piece in
setup)
    if [ -d wheels ]; then
        $python -m pip install --no-index --find-links wheels hydra-core omegaconf jaxtyping beartype pytest-xdist
    else
        $python -m pip install -c constraints/cuda.txt -e ".[cuda,dev]"
    fi
    ;;
kernels)
    $python -m pip install -c constraints/cuda.txt fla-core
    $python -m pip install --no-build-isolation -c constraints/cuda.txt causal-conv1d mamba-ssm
    ;;
tests)
    $python -m pytest -m gpu -n 0 --jaxtyping-packages=
    ;;
train)
    for model in "$@"; do train "$model"; done
    ;;
backends)
    for model in mamba mamba2; do
        for backend in torch mamba_ssm; do train "$model" model.backend=$backend; done
    done
    ;;
windows)
    for backend in torch flex; do
        $python -m zoo bench model=sliding_window,samba model.attention_backend=$backend model.window=1024 size=small \
            lengths=1024,4096,16384 data.batch_size=4 rounds=3 trainer.accelerator=gpu csv="$out/windows-$backend.csv"
    done
    ;;
fla)
    for model in "$@"; do
        for backend in torch fla; do train "$model" model.backend=$backend; done
    done
    ;;
bench)
    models=$(IFS=,; echo "$*")
    $python -m zoo bench model="$models" size=small lengths=1024,4096,16384 data.batch_size=4 rounds=3 \
        trainer.accelerator=gpu csv="$out/bench.csv" plot="$out/bench.png"
    ;;
*)
    echo "unknown piece: $piece" && exit 2
    ;;
esac
