//! Shows and changes what a dshost runs.

fn main() -> std::process::ExitCode {
    tools::dsctl::main()
}
