# `just` lists these; each line is an ordinary command that works without just.

# The main job: gateway, CPU neuron and the bundled demo model.
up *ARGS:
    cargo run --release -- up {{ARGS}}

# The tests.
test:
    cargo test --release --workspace

# The product from outside: the built binary, curl, and the OpenAI SDK in a venv under target/.
e2e:
    cargo build --release
    .ci/e2e

# What CI runs.
ci:
    .ci/run

# Format everything.
fmt:
    cargo fmt --all

# Lints, as CI sees them.
lint:
    cargo clippy --release --workspace --all-targets -- -D warnings

# What faults cost: runs the fault table and writes docs/faults.md.
faults:
    CORTEX_WRITE_FAULTS=1 cargo test --release -p cortex-gateway --test it fault_table -- --nocapture
