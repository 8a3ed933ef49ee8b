#!/usr/bin/env bash
# Everything that is measured or tested on a GPU, in one call on a machine that has one but neither Rust nor a network.
#
#   bench/gpu.sh pack BUNDLE        here: builds, and gathers the programs and the fixtures in the folder BUNDLE
#   bench/gpu.sh run BUNDLE OUT     there: runs them; OUT gets a log of each part, raw JSON, and summary.txt
#
# PARTS chooses among `tests fault sanitizer bench load http beside` (these unless set) and `split`, which needs two GPUs; SHAPES among those of
# `neuron bench --random`.
# A failed part does not keep the others from running; the exit status is the number of failed parts.
set -euo pipefail

pack() {
    local bundle=$1 source binaries
    mkdir -p "$bundle"; bundle=$(realpath "$bundle")
    source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    cd "$source"
    cargo build --locked --release --features cuda -p neuron
    # Cargo names each binary once, in the message that says that it was made.
    binaries=$(cargo test --locked --release --features cuda -p neuron-kernels -p neuron-engine -p neuron --test '*' --bench beside \
        --no-run --message-format json | binaries)
    # The tests look for their data beside their crates.
    mkdir -p "$bundle"/bin "$bundle"/source/{models,crates/{neuron-kernels,neuron-engine,neuron}}
    while read -r name file; do cp "$file" "$bundle/bin/$name"; done <<<"$binaries"
    cp "${CARGO_TARGET_DIR:-target}/release/neuron" "$bundle/bin/"
    cp -r crates/neuron-engine/testdata "$bundle/source/crates/neuron-engine/"
    cp -r models/cortex-demo "$bundle/source/models/"
    cp bench/gpu.sh bench/ttft.py "$bundle/"
    # Where the tests were built to look for their data.
    echo "$source" >"$bundle/built-at"
    du -sh "$bundle"
}

# `CRATE-TARGET FILE` of each test or bench among cargo's messages.
binaries() {
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["kind"][0] in ("test", "bench"):
        package = message["package_id"].split("#")[0].rsplit("/", 1)[-1]
        print(package + "-" + message["target"]["name"], message["executable"])'
}

run() {
    local bundle out built_at
    bundle=$(realpath "$1"); mkdir -p "$2"; out=$(realpath "$2")
    built_at=$(cat "$bundle/built-at")
    if [ ! -e "$built_at" ]; then mkdir -p "$(dirname "$built_at")"; ln -s "$bundle/source" "$built_at"; fi
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"
    failed=0
    bin=$bundle/bin
    tests() {
        "$bin/neuron-kernels-it" cuda && "$bin/neuron-engine-it" gpu --skip gpus
    }
    fault() { "$bin/neuron-it" renewal --nocapture --test-threads 1; }
    sanitizer() {
        compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 "$bin/neuron-kernels-it" cuda::staging
    }
    bench() {
        local shape
        for shape in $shapes; do
            "$bin/neuron" bench --random "$shape" --only decode,prefill,serve --concurrency 1,64,256 --json >"$out/$shape.json" || return
        done
    }
    load() { "$bin/neuron" bench --random "${LOAD_SHAPE:-qwen3-8b}" --store --only load --json >"$out/load-${LOAD_SHAPE:-qwen3-8b}.json"; }
    http() { python3 "$bundle/ttft.py" --neuron "$bin/neuron" --shape "${HTTP_SHAPE:-qwen3-8b}" --json "$out/ttft-${HTTP_SHAPE:-qwen3-8b}.json"; }
    split() {
        "$bin/neuron-engine-it" gpus --nocapture --test-threads 1 || return
        local ranks
        for ranks in 1 2; do
            "$bin/neuron" bench --random "${SPLIT_SHAPE:-qwen3-32b}" --tensor-parallel "$ranks" --only decode,prefill --batch 1,32,256 \
                --context 128 --prefill 2048 --tokens 64 --json >"$out/split-$ranks.json" || return
        done
    }
    beside() {
        local shape
        for shape in $shapes; do "$bin/neuron-beside" "$shape" --json "$out/beside-$shape.json" || return; done
    }
    shapes=${SHAPES:-qwen3-0.6b qwen3-8b}
    : >"$out/summary.txt"
    for part in ${PARTS:-tests fault sanitizer bench load http beside}; do
        local started=$SECONDS
        # As a condition a part runs without `set -e`: each of its commands says itself what its failure means.
        if "$part" >"$out/$part.log" 2>&1; then verdict=ok; else verdict=FAILED; failed=$((failed + 1)); fi
        printf '%-10s %-7s %4s s\n' "$part" "$verdict" $((SECONDS - started)) | tee -a "$out/summary.txt"
    done
    return "$failed"
}

case ${1:-} in
pack) [ $# -eq 2 ] || { sed -n '2,9p' "$0"; exit 2; }; pack "$2" ;;
run) [ $# -eq 3 ] || { sed -n '2,9p' "$0"; exit 2; }; run "$2" "$3" ;;
*) sed -n '2,9p' "$0"; exit 2 ;;
esac
