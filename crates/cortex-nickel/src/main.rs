//! The program behind `cortex placement`. It works by itself too.

fn main() -> std::process::ExitCode {
    cortex_nickel::cli::main()
}
