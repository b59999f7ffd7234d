//! `lodge stats`: what a running guest's VMM counts, so that a slow guest can be understood.

mod figures;
mod table;

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use vmm_api::{Answer, Failure, Request, Statistics};

use crate::args::StatsArgs;
use crate::{guests, output};

pub use figures::help;

/// How long a VMM may take to answer. It does not wait as long itself for its processors.
const PATIENCE: Duration = Duration::from_secs(15);

/// Prints what was counted; the value is the exit status.
pub fn run(args: &StatsArgs) -> Result<u8, Failure> {
    let mut guest =
        Guest { name: &args.name, stream: BufReader::new(guests::connect(&args.name)?) };
    let first = guest.look()?;
    let text = if args.json {
        serde_json::to_string_pretty(&first).map_err(Failure::internal)? + "\n"
    } else {
        thread::sleep(args.interval);
        table::of(&first, &guest.look()?)
    };
    output::print(text)?;
    Ok(0)
}

/// A running guest.
struct Guest<'a> {
    name: &'a str,
    stream: BufReader<UnixStream>,
}

impl Guest<'_> {
    fn look(&mut self) -> Result<Statistics, Failure> {
        let name = self.name;
        let gone = || {
            format!("the guest {name} ended before it answered; `lodge ls` lists those that run")
        };
        match self.ask() {
            Ok(Some(Answer::Statistics(statistics))) => Ok(statistics),
            Ok(Some(Answer::Error(failure))) => Err(failure),
            Ok(None) => Err(Failure::host(gone())),
            Err(error) => Err(Failure::host(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
                    "the guest {name} does not answer within {} seconds: its lodge-vmm is stopped, \
                     or this host is very busy",
                    PATIENCE.as_secs()
                ),
                io::ErrorKind::InvalidData => format!(
                    "the guest {name} answers in another language ({error}): it was started by \
                     another version of lodge; ask with that one"
                ),
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof => gone(),
                _ => format!("the guest {name} cannot be asked: {error}"),
            })),
        }
    }

    fn ask(&mut self) -> io::Result<Option<Answer>> {
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Request::Statistics.write_line(stream)?;
        Answer::read_line(&mut self.stream)
    }
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
