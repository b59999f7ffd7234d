//! `lodge stats`: what running guests use, and what a guest's VMM counts, so that a slow guest can
//! be understood.

mod figures;
mod live;
mod table;

use std::thread;
use std::time::Duration;

use vmm_api::Failure;

use crate::args::StatsArgs;
use crate::{guests, output};

pub use figures::help;

/// Prints what was counted; the value is the exit status.
pub fn run(args: &StatsArgs) -> Result<u8, Failure> {
    let Some(name) = &args.name else { return live::run(args) };
    let mut client = guests::client(name)?;
    let mut look = || client.statistics().map_err(|error| error.about(name));
    let first = look()?;
    let text = if args.json {
        serde_json::to_string_pretty(&first).map_err(Failure::internal)? + "\n"
    } else {
        thread::sleep(args.interval);
        table::of(&first, &look()?)
    };
    output::print(text)?;
    Ok(0)
}

/// Reads `--interval`: seconds.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("write seconds, from 0.1 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read() {
        assert_eq!(parse_interval("1"), Ok(Duration::from_secs(1)));
        assert_eq!(parse_interval("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "nan", "inf", "1e99", "1s"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
    }
}
