//! The daemon of a VM host.

fn main() -> std::process::ExitCode {
    host::command_line::main()
}
