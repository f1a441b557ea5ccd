//! Moves a VM, a file or a directory to another datastore while it is in use.

fn main() -> std::process::ExitCode {
    tools::dsmove::main()
}
