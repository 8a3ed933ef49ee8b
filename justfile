# `just` lists these; each line is an ordinary command that works without just.

# The main job: gateway, CPU neuron and the bundled demo model.
up *ARGS:
    cargo run --release -- up {{ARGS}}

# The tests.
test:
    cargo test --release --workspace

# What CI runs.
ci:
    .ci/run

# Format everything.
fmt:
    cargo fmt --all

# Lints, as CI sees them.
lint:
    cargo clippy --release --workspace --all-targets -- -D warnings

# Benches; each prints its table. Raw runs that matter go to bench/results/.
bench NAME *ARGS:
    cargo bench --bench {{NAME}} -- {{ARGS}}
