//! Manual pages, made from the command line's definition.

use std::path::Path;

use clap::CommandFactory;
use vmm_api::Failure;

use crate::args::Cli;
use crate::{failure, output};

/// `lodge man`: the page of `lodge` itself to standard output, or all pages to a directory.
pub fn write_man(directory: Option<&Path>) -> Result<u8, Failure> {
    match directory {
        Some(directory) => {
            clap_mangen::generate_to(Cli::command(), directory)
                .map_err(failure::io("write manual pages to", directory))?;
            Ok(0)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(|error| Failure::internal(format!("the manual page: {error}")))?;
            output::print(page)?;
            Ok(0)
        }
    }
}
