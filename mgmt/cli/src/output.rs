//! Standard output.

use std::io::{self, Write};

use vmm_api::Failure;

/// Prints to standard output. A reader that has seen enough and is gone is no failure.
pub fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::host(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
